"""diffusers: which transformers can be patched: known by the form of their rotary embedder, and one row of data for each class.

The form says how a transformer asks for its table and how pipelines call it; the row, what no embedder tells: what it was trained on.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ...architecture import IMAGE_ONLY, Architecture
from ...architectures import ARCHITECTURES
from ...errors import RopeWorksError
from ...native import side_of
from ...stack import HEIGHT, TIME, WIDTH
from .embedders import PlannedEmbedder
from .execution import Part, PatchedTransformer
from .flux import Flux, Krea2
from .lumina import Lumina, ZImage
from .parts import FLUX_PARTS, ONE_TABLE_PARTS, TABLE_BY_IMAGE_PARTS, WAN_PARTS
from .qwen import Qwen
from .wan import Wan

THOUSAND = 1000.0


@dataclass(frozen=True)
class Form:
    """How a kind of transformer asks for its table.

    embedder: its attribute, asked with `asked`, in this order. holds: what the embedder has for us to read. takes: arguments of the
    transformer's forward that its adapter reads. like: for people.
    """

    adapter: type[PatchedTransformer]
    embedder: str
    asked: tuple[str, ...]
    holds: tuple[str, ...]
    takes: tuple[str, ...]
    like: str

    def fits(self, transformer: nn.Module) -> bool:
        embedder = embedder_at(transformer, self.embedder)
        return (
            callable(embedder)
            and all(hasattr(embedder, name) for name in self.holds)
            and _parameters(embedder) == self.asked
            and {*self.takes} <= {*_parameters(transformer)}
        )

    def __str__(self) -> str:
        holds, takes = ", ".join(self.holds), ", ".join(self.takes)
        return f"{self.asks} with {holds} and a forward that takes {takes} ({self.like})"

    @property
    def asks(self) -> str:
        """For people."""
        return f"{self.embedder}({', '.join(self.asked)})"


_LATENT = ("hidden_states", "timestep")
_IDS = Form(Flux, "pos_embed", ("ids",), ("axes_dim", "theta"), (*_LATENT, "encoder_hidden_states", "img_ids", "txt_ids"), "as Flux's")
_ROW_OF_IDS = Form(Krea2, "rotary_emb", ("ids",), ("axes_dim", "theta"), (*_LATENT, "encoder_hidden_states", "position_ids"), "as Krea 2's")
_COUNTING = Form(Wan, "rope", ("hidden_states",), ("patch_size", "t_dim", "h_dim", "w_dim"), _LATENT, "as Wan's")
_COUNTING_ONCE = Form(Wan, "rope", ("hidden_states",), ("patch_size", "rope_dim", "theta"), _LATENT, "as HunyuanVideo's")
_SHAPES = Form(
    Qwen, "pos_embed", ("video_fhw", "device", "max_txt_seq_len"), ("pos_freqs", "neg_freqs", "axes_dim", "theta", "scale_rope"),
    (*_LATENT, "encoder_hidden_states", "img_shapes"), "as Qwen-Image's",
)  # fmt: skip
_MASKED = Form(
    Lumina, "rope_embedder", ("hidden_states", "attention_mask"), ("axes_dim", "axes_lens", "theta", "patch_size"),
    (*_LATENT, "encoder_hidden_states", "encoder_attention_mask"), "as Lumina2's",
)  # fmt: skip
_LISTS = Form(ZImage, "rope_embedder", ("ids",), ("axes_dims", "axes_lens", "theta"), ("x", "t", "cap_feats"), "as Z-Image's")
FORMS = (_IDS, _ROW_OF_IDS, _COUNTING, _COUNTING_ONCE, _SHAPES, _MASKED, _LISTS)


@dataclass(frozen=True)
class Family:
    """A class of diffusers' transformers.

    rows: of architectures, the first that fits by width and channels is taken. parts: the kinds of run it can make. times: what pipelines
    call the time of pure noise. cut: whether diffusers' context parallelism cuts its sequence as our tables are cut. side: what its
    configuration calls the side of a square of the trained area, in pixels, where it tells.
    """

    rows: tuple[Architecture, ...]
    form: Form
    parts: tuple[type[Part], ...]
    times: float = THOUSAND
    cut: bool = False
    side: str = ""

    def architecture(self, config: Any) -> Architecture:
        hidden, channels = config.get("num_attention_heads", 0) * config.get("attention_head_dim", 0), config.get("out_channels")
        row = next(row for row in self.rows if row.hidden in (None, hidden) and row.channels in (None, channels))
        told = config.get(self.side)
        return replace(row, native=told / row.pixels_per_token, native_source="its configuration", assumed="") if told else row


def _rows(*families: str) -> tuple[Architecture, ...]:
    return tuple(row for row in ARCHITECTURES if row.family in families)


_WAN = _rows("Wan 2.2 5B", "Wan 480p", "Wan 720p")
_VIDEO = (TIME, HEIGHT, WIDTH)
_BRIA, _FIBO = (replace(_rows("Chroma")[0], family=family) for family in ("Bria", "Bria FIBO"))
_SKYREELS = Architecture(
    "SkyReels V2", (), (), _VIDEO, "rope", "patch_embedding", IMAGE_ONLY, side_of(960, 544), 960 / 544, "its makers: 540p, 97 frames",
    native_frames=25, riflex_pair=5, assumed="trained at 540p is assumed; for a checkpoint of 720p set native_pixels to 960",
)  # fmt: skip

FAMILIES: dict[str, Family] = {
    "FluxTransformer2DModel": Family(_rows("Flux.1"), _IDS, FLUX_PARTS, times=1.0, cut=True),
    "OvisImageTransformer2DModel": Family(_rows("Flux.1"), _IDS, ONE_TABLE_PARTS, times=1.0),
    "LongCatImageTransformer2DModel": Family(_rows("LongCat-Image"), _IDS, ONE_TABLE_PARTS, times=1.0),
    "ChromaTransformer2DModel": Family(_rows("Chroma"), _IDS, ONE_TABLE_PARTS, times=1.0),
    "Flux2Transformer2DModel": Family(_rows("Flux.2"), _IDS, ONE_TABLE_PARTS, times=1.0),
    "BriaTransformer2DModel": Family((_BRIA,), _IDS, ONE_TABLE_PARTS),
    "BriaFiboTransformer2DModel": Family((_FIBO,), _IDS, ONE_TABLE_PARTS),
    "Krea2Transformer2DModel": Family(_rows("Krea 2"), _ROW_OF_IDS, ONE_TABLE_PARTS, times=1.0),
    "QwenImageTransformer2DModel": Family(_rows("Qwen-Image"), _SHAPES, ONE_TABLE_PARTS, times=1.0),
    "Lumina2Transformer2DModel": Family(_rows("Lumina2 / Z-Image"), _MASKED, TABLE_BY_IMAGE_PARTS, times=1.0),
    "ZImageTransformer2DModel": Family(_rows("Lumina2 / Z-Image"), _LISTS, TABLE_BY_IMAGE_PARTS, times=1.0),
    "WanTransformer3DModel": Family(_WAN, _COUNTING, WAN_PARTS, cut=True),
    "WanVACETransformer3DModel": Family(_WAN, _COUNTING, TABLE_BY_IMAGE_PARTS),
    "WanAnimateTransformer3DModel": Family(_rows("Wan Animate"), _COUNTING, TABLE_BY_IMAGE_PARTS),
    "SkyReelsV2Transformer3DModel": Family((_SKYREELS,), _COUNTING, TABLE_BY_IMAGE_PARTS),
    "HunyuanVideoTransformer3DModel": Family(_rows("HunyuanVideo"), _COUNTING_ONCE, ONE_TABLE_PARTS),
    "HunyuanVideo15Transformer3DModel": Family(_rows("HunyuanVideo 1.5"), _COUNTING_ONCE, ONE_TABLE_PARTS, side="target_size"),
    "HunyuanImageTransformer2DModel": Family(_rows("HunyuanImage 2.1"), _COUNTING_ONCE, ONE_TABLE_PARTS),
}


def family_of(transformer: nn.Module) -> Family:
    """The family of a transformer, or of the class that its own derives from. Raises RopeWorksError naming the form that was found."""
    name = type(transformer).__name__
    form = next((form for form in FORMS if form.fits(transformer)), None)
    if form is None:
        raise RopeWorksError(
            f"found a {name}, {_found(transformer)}; expected {'; or '.join(map(str, FORMS))}. Pass a pipeline or its transformer, of "
            f"{', '.join(FAMILIES)}."
        )
    known = [kind.__name__ for kind in type(transformer).__mro__ if kind.__name__ in FAMILIES]
    family = FAMILIES[known[0]] if known else None
    if family is None or family.form is not form:
        raise RopeWorksError(
            f"found a {name}, whose rotary embedder is of a known form, {form}, but not what it was trained on. Known of this form: "
            f"{', '.join(name for name, family in FAMILIES.items() if family.form is form)}."
        )
    return family


def embedder_at(transformer: nn.Module, attribute: str) -> Any:
    """A transformer's own, behind one of ours."""
    found = getattr(transformer, attribute, None)
    return found.base if isinstance(found, PlannedEmbedder) else found


def _parameters(module: Any) -> tuple[str, ...]:
    """Of its class's forward, whatever stands in the place of the module's; embedders that are no modules are called."""
    kind = type(module)
    return tuple(inspect.signature(kind.forward if isinstance(module, nn.Module) else kind.__call__).parameters)[1:]


def _found(transformer: nn.Module) -> str:
    def named() -> Iterator[str]:
        for attribute, child in transformer.named_children():
            if any(word in attribute for word in ("rope", "rotary", "pos_embed", "pe_embedder")):
                yield f"{attribute}({', '.join(_parameters(child))}) of class {type(child).__name__}"

    found = list(named())
    return f"whose embedder is {' and '.join(found)}" if found else "which has no rotary embedder"
