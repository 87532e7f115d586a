"""One row of data per model family: what its tokens are, where its rotary embedder sits, what it was trained on.

Axes' widths and theta are read from the model itself and never stand here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from .errors import RopeWorksError
from .native import NativeSize, side_of
from .published import GENERAL_RULES, Published, SlowedPairs
from .stack import HEIGHT, INDEX, MIXED, SHARED, TIME, TRAINING, WIDTH

# How the tokens of one sequence follow one another.
TEXT_IMAGE_REFERENCES = "text, image, references"
TEXT_REFERENCES_IMAGE = "text, references, image"
IMAGE_TEXT = "image, text"
IMAGE_ONLY = "image"
BY_POSITION = "by position"  # by the host's version; every token's ids tell what it is
# How a layer makes tokens from a latent's patches. The letters say how a patch is flattened.
CHANNELS_FIRST, CHANNELS_LAST = "linear, c h w", "linear, h w c"
CONVOLUTION, FLOAT32_CONVOLUTION = "convolution", "convolution in float32"


@dataclass(frozen=True)
class Architecture:
    """A family of models that share classes and token order.

    classes: of the transformer, in ComfyUI or diffusers. models: of the model around it, in ComfyUI, where several models that differ
    share a transformer's class. roles: meaning of each rotary axis. native: tokens per side of a square of the trained area; widest:
    trained aspect, longer side over shorter; native_source: who says so; native_frames: latent frames. embedder, patch_layer: paths of
    modules within the transformer. order: of a sequence with image tokens. patch: side of a token in latent pixels, where the
    transformer's attribute does not tell. by_coordinates: `embedder` is a method that makes tables from pixels and seconds;
    native_seconds: of a clip, where these count. position_step: distance of neighbouring tokens in the host's positions. centred: positions
    count from the image's middle, and text begins where the longer side ends. frames_along: the axis that frames, or layers, count on.
    heeds_rope_options: core's own scaling and shifting of positions reaches this family. riflex_pair: the one whose period is nearest
    to the trained frames, as RIFLEx's authors identify it; HunyuanVideo's is theirs. schedule_by_size: its own scheduler already goes by
    the picture's size. refusals: kind of run -> why it is not possible yet. hidden, channels: further marks that tell variants of one
    class apart. assumed: what no mark tells, for people. published: what methods' authors use on this family.
    """

    family: str
    classes: tuple[str, ...]
    models: tuple[str, ...]
    roles: tuple[str, ...]
    embedder: str
    patch_layer: str
    order: str
    native: float
    widest: float = 1.0
    native_source: str = ""
    pixels_per_token: int = 16
    patch_kind: str = CHANNELS_FIRST
    patch: int | None = None
    by_coordinates: bool = False
    native_frames: int | None = None
    native_seconds: float | None = None
    riflex_pair: int | None = None
    position_step: float = 1.0
    centred: bool = False
    frames_along: str = TIME
    heeds_rope_options: bool = False
    schedule_by_size: bool = False
    refusals: Mapping[str, str] = field(default_factory=dict)
    hidden: int | None = None
    channels: int | None = None
    assumed: str = ""
    published: Published = GENERAL_RULES

    @property
    def native_size(self) -> NativeSize:
        return NativeSize(self.native, self.widest)

    @property
    def video(self) -> bool:
        return TIME in self.roles


@dataclass(frozen=True)
class ModelFacts:
    """What a patch may ask of a model before it is put on it. latent_dimensions: 2 for pictures, 3 with frames."""

    architecture: Architecture
    latent_channels: int | None = None
    latent_dimensions: int = 2


_IMAGE = (INDEX, HEIGHT, WIDTH)
_VIDEO = (TIME, HEIGHT, WIDTH)
_WAN_CLASSES = ("WanModel", "VaceWanModel", "CameraWanModel", "WanTransformer3DModel")
_WAN_MODELS = ("WAN21", "WAN21_Vace", "WAN21_Camera", "WAN21_FlowRVS", "WAN22")
_ASSUMED_720P = "trained at 720p is assumed; for 480p set native_size to 632"
_BY_FRAME = "it reads its sound frame by frame, and the tokens of a strip are no frames"
_HUNYUAN_MODELS = ("HunyuanVideo", "HunyuanVideoI2V", "HunyuanVideoSkyreelsI2V")
_LTX_REFUSALS = {
    MIXED: "each of its heads turns by frequencies of its own, which keys of two resolutions have not been turned by",
    SHARED: "each of its heads turns by frequencies of its own, which a reference's keys have not been turned by",
    TRAINING: "it has been made for token numbers, and this model counts pixels and seconds",
}
_HUNYUAN_CORE_REFUSALS = dict.fromkeys((MIXED, SHARED), "this ComfyUI puts its text behind the picture; update it to 0.14 or later")
# Longer side over shorter: of the megapixel buckets that picture models share (1536×640), and of the widest size of the film models.
_PICTURES, _FILMS = 1536 / 640, 1280 / 704
_MEGAPIXEL = "buckets of one megapixel"
# SEGA: github.com/rajabi2001/sega. UltraImage: github.com/thu-ml/DiT-Extrapolation, branches ultra-flux and ultra-qwenimage, whose
# indices count from 0: 9 on Flux, slowed to .85 of a turn over the picture, 8 and 9 on Qwen-Image, slowed by side / 1328.
_ON_FLUX = Published(sega_shift=1.15, ultraimage=SlowedPairs((10,), turns=0.85))
_ON_QWEN_IMAGE = Published(sega_side=1024, ultraimage=SlowedPairs((9, 10)))

ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture(
        "Flux.1", ("Flux", "FluxTransformer2DModel"), ("Flux",), _IMAGE, "pe_embedder", "img_in", TEXT_IMAGE_REFERENCES,
        side_of(1024, 1024), _PICTURES, _MEGAPIXEL, heeds_rope_options=True, published=_ON_FLUX,
    ),
    Architecture(
        "LongCat-Image", ("Flux",), ("LongCatImage",), _IMAGE, "pe_embedder", "img_in", TEXT_IMAGE_REFERENCES,
        side_of(1024, 1024), _PICTURES, _MEGAPIXEL, heeds_rope_options=True,
        refusals={MIXED: "where its picture begins depends on the text's length, which is known inside the model alone"},
    ),
    Architecture(
        "Flux.2", ("Flux",), ("Flux2",), (*_IMAGE, INDEX), "pe_embedder", "img_in", TEXT_IMAGE_REFERENCES,
        side_of(2048, 2048), _PICTURES, "its maker's four megapixels of output; no size of training is published",
        heeds_rope_options=True, schedule_by_size=True,
    ),
    Architecture(
        "Chroma", ("Chroma",), ("Chroma",), _IMAGE, "pe_embedder", "img_in", TEXT_IMAGE_REFERENCES,
        side_of(1024, 1024), _PICTURES, _MEGAPIXEL,
    ),
    Architecture(
        "Qwen-Image", ("QwenImageTransformer2DModel",), ("QwenImage",), _IMAGE, "pe_embedder", "img_in", TEXT_IMAGE_REFERENCES,
        side_of(1328, 1328), 1664 / 928, "its makers' list of sizes", centred=True, frames_along=INDEX,
        published=_ON_QWEN_IMAGE,
    ),
    Architecture(
        "Lumina2 / Z-Image", ("NextDiT",), ("Lumina2",), _IMAGE, "rope_embedder", "x_embedder", BY_POSITION,
        side_of(1024, 1024), _PICTURES, "one megapixel; sources differ, up to four for Z-Image",
        patch_kind=CHANNELS_LAST, heeds_rope_options=True,
    ),
    Architecture(
        "Wan 2.2 5B", _WAN_CLASSES, _WAN_MODELS, _VIDEO, "rope_embedder", "patch_embedding", IMAGE_ONLY,
        side_of(1280, 704, 32), _FILMS, "its makers' list of sizes",
        pixels_per_token=32, patch_kind=FLOAT32_CONVOLUTION, native_frames=31, riflex_pair=5, heeds_rope_options=True, channels=48,
    ),
    Architecture(
        "Wan 480p", _WAN_CLASSES, _WAN_MODELS, _VIDEO, "rope_embedder", "patch_embedding", IMAGE_ONLY,
        side_of(832, 480), _FILMS, "its makers' list of sizes",
        patch_kind=FLOAT32_CONVOLUTION, native_frames=21, riflex_pair=4, heeds_rope_options=True, hidden=1536,
    ),
    Architecture(
        "Wan 720p", _WAN_CLASSES, _WAN_MODELS, _VIDEO, "rope_embedder", "patch_embedding", IMAGE_ONLY,
        side_of(1280, 720), _FILMS, "its makers' list of sizes",
        patch_kind=FLOAT32_CONVOLUTION, native_frames=21, riflex_pair=4, heeds_rope_options=True,
        assumed="trained at 720p is assumed; for a checkpoint of 480p set native_size to 632",
    ),
    Architecture(
        "Wan Animate", ("AnimateWanModel",), ("WAN22_Animate",), _VIDEO, "rope_embedder", "patch_embedding", IMAGE_ONLY,
        side_of(1280, 720), _FILMS, "its makers' command line; clips of 77 frames",
        patch_kind=FLOAT32_CONVOLUTION, native_frames=20, riflex_pair=4, heeds_rope_options=True,
        refusals={MIXED: "it reads pose and face frame by frame, and the tokens of a strip are no frames"}, assumed=_ASSUMED_720P,
    ),
    Architecture(
        "Wan Animate 2", ("WanAnimate2Model",), ("WAN_Animate2",), _VIDEO, "rope_embedder", "patch_embedding", IMAGE_ONLY,
        side_of(1280, 720), _FILMS, "SGLang's page on it: 640×800 and 720×1280",
        patch_kind=FLOAT32_CONVOLUTION, native_frames=21, riflex_pair=4, heeds_rope_options=True,
        refusals=dict.fromkeys((MIXED, SHARED), "each of its frames looks at the pose's in an attention call of its own"),
        assumed=_ASSUMED_720P,
    ),
    Architecture(
        "Wan SCAIL", ("SCAILWanModel", "SCAIL2WanModel"), ("WAN21_SCAIL", "WAN21_SCAIL2"), _VIDEO, "rope_embedder", "patch_embedding",
        IMAGE_ONLY, side_of(896, 512), _FILMS, "its makers: 512p and 5 seconds",
        patch_kind=FLOAT32_CONVOLUTION, native_frames=21, riflex_pair=4, heeds_rope_options=True,
        refusals={MIXED: "its pose and its references stand in one sequence with the picture"},
    ),
    Architecture(
        "Wan S2V", ("WanModel_S2V",), ("WAN22_S2V",), _VIDEO, "rope_embedder", "patch_embedding", IMAGE_ONLY,
        side_of(1280, 720), _FILMS, "its makers: 480p and 720p, clips of 80 frames",
        patch_kind=FLOAT32_CONVOLUTION, native_frames=20, riflex_pair=4, heeds_rope_options=True,
        refusals={MIXED: _BY_FRAME}, assumed=_ASSUMED_720P,
    ),
    Architecture(
        "Wan HuMo", ("HumoWanModel",), ("WAN21_HuMo",), _VIDEO, "rope_embedder", "patch_embedding", IMAGE_ONLY,
        side_of(1280, 720), _FILMS, "its makers: 480p and 720p, trained on 97 frames",
        patch_kind=FLOAT32_CONVOLUTION, native_frames=25, riflex_pair=5, heeds_rope_options=True,
        refusals={MIXED: _BY_FRAME}, assumed=_ASSUMED_720P,
    ),
    Architecture(
        "WanDancer", ("WanDancerModel",), ("WAN22_WanDancer",), _VIDEO, "rope_embedder", "patch_embedding", IMAGE_ONLY,
        side_of(832, 480), _FILMS, "ComfyUI's node for it: 480×832, 149 frames",
        patch_kind=FLOAT32_CONVOLUTION, native_frames=38, riflex_pair=6, heeds_rope_options=True,
        refusals={MIXED: _BY_FRAME},
    ),
    Architecture(
        "Wan Causal", ("CausalWanModel",), ("WAN21_CausalAR",), _VIDEO, "rope_embedder", "patch_embedding", IMAGE_ONLY,
        side_of(832, 480), _FILMS, "as Wan 2.1 1.3B, which it is made from",
        patch_kind=FLOAT32_CONVOLUTION, native_frames=21, riflex_pair=4, heeds_rope_options=True,
        refusals=dict.fromkeys((MIXED, SHARED), "it draws a clip in blocks, each with keys of those before"),
    ),
    Architecture(
        "LTX-Video", ("LTXVModel",), ("LTXV",), _VIDEO, "_precompute_freqs_cis", "patchify_proj", IMAGE_ONLY,
        side_of(1216, 704, 32), _FILMS, "its makers: 1216×704, clips below 257 frames",
        pixels_per_token=32, patch=1, by_coordinates=True, schedule_by_size=True, native_frames=32, native_seconds=257 / 25,
        refusals=_LTX_REFUSALS,
    ),
    Architecture(
        "LTX-2", ("LTXAVModel",), ("LTXAV",), _VIDEO, "_precompute_freqs_cis", "patchify_proj", IMAGE_ONLY,
        side_of(1920, 1088, 32), _FILMS, "its makers' list of sizes begins there; clips of 20 seconds; no size of training is published",
        pixels_per_token=32, patch=1, by_coordinates=True, schedule_by_size=True, native_frames=63, native_seconds=20.0,
        refusals=_LTX_REFUSALS,
    ),
    Architecture(
        "HunyuanVideo", ("HunyuanVideo",), _HUNYUAN_MODELS, _VIDEO, "pe_embedder", "img_in", TEXT_REFERENCES_IMAGE,
        side_of(1280, 720), _FILMS, "its makers' list of sizes",
        patch_kind=CONVOLUTION, native_frames=33, riflex_pair=4,
    ),
    Architecture(
        "HunyuanVideo 1.5", ("HunyuanVideo",), ("HunyuanVideo15",), _VIDEO, "pe_embedder", "img_in", TEXT_REFERENCES_IMAGE,
        side_of(1280, 720), _FILMS, "its makers' names for it: 480p and 720p",
        patch_kind=CONVOLUTION, native_frames=31, riflex_pair=4,
        assumed="trained at 720p is assumed; for a checkpoint of 480p set native_size to 632",
    ),
    Architecture(
        "HunyuanVideo 1.5 SR", ("HunyuanVideo",), ("HunyuanVideo15_SR_Distilled",), _VIDEO, "pe_embedder", "img_in", TEXT_REFERENCES_IMAGE,
        side_of(1920, 1088), _FILMS, "its makers' names for it: 720p and 1080p",
        patch_kind=CONVOLUTION, native_frames=31, riflex_pair=4,
        assumed="trained at 1080p is assumed; for a checkpoint of 720p set native_size to 960",
    ),
)  # fmt: skip


def with_text_behind(row: Architecture) -> Architecture:
    """A row of HunyuanVideo as cores before 0.14 have it."""
    return replace(row, order=BY_POSITION, refusals={**row.refusals, **_HUNYUAN_CORE_REFUSALS})


def recognise(
    class_name: str, axes: int | None, hidden: int | None = None, channels: int | None = None, model_class: str | None = None
) -> Architecture:
    """The row for a transformer of class `class_name` in a model of class `model_class` (None: a host without such).

    axes: how many rotary axes it has, None where its embedder does not tell. hidden: its width, channels: of its latent.
    Raises RopeWorksError naming the model found and the families known.
    """
    for row in ARCHITECTURES:
        if class_name not in row.classes or len(row.roles) != axes:
            continue
        if model_class is not None and model_class not in row.models:
            continue
        if row.hidden not in (None, hidden) or row.channels not in (None, channels):
            continue
        return row
    name = class_name if model_class in (None, class_name) else f"{model_class} (transformer {class_name})"
    if axes is not None:
        name += f" with {axes} rotary axes"
    raise RopeWorksError(f"{name} is not supported yet. Supported: {families()}. Connect one of these models, or remove the node.")


def families(rows: Sequence[Architecture] = ARCHITECTURES) -> str:
    """The families' names, for people."""
    return ", ".join(dict.fromkeys(row.family for row in rows))
