"""What is told of a model family: what its tokens are, where its rotary embedder sits, what it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .native import NativeSize
from .pairing import NEIGHBOURS
from .published import GENERAL_RULES, Published
from .stack import TIME

# How the tokens of one sequence follow one another.
TEXT_IMAGE_REFERENCES = "text, image, references"
TEXT_REFERENCES_IMAGE = "text, references, image"
IMAGE_TEXT = "image, text"
IMAGE_ONLY = "image"
BY_POSITION = "by position"  # by the host's version; every token's ids tell what it is
# How a layer makes tokens from a latent's patches. The letters say how a patch is flattened.
CHANNELS_FIRST, CHANNELS_LAST = "linear, c h w", "linear, h w c"
FLOAT32_CHANNELS_FIRST = "linear in float32, c h w"
CONVOLUTION, FLOAT32_CONVOLUTION = "convolution", "convolution in float32"


@dataclass(frozen=True)
class Architecture:
    """A family of models that share classes and token order.

    classes: of the transformer, in ComfyUI or diffusers. models: of the model around it, in ComfyUI, where several models that differ
    share a transformer's class. roles: meaning of each rotary axis. native: tokens per side of a square of the trained area; widest:
    trained aspect, longer side over shorter; native_source: who says so; native_frames: latent frames. embedder, patch_layer: paths of
    modules within the transformer. order: of a sequence with image tokens. patch: side of a token in latent pixels, where the
    transformer's attribute does not tell. by_coordinates: `embedder` is a method that makes tables from pixels and seconds;
    native_seconds: of a clip, where these count. by_angles: `embedder` is a method that gives angles, of text, references, sound and
    picture packed in one row. one_extent: rows and columns of a picture run over the same positions, whatever its size.
    centred: positions count from the image's middle. odd_begin_earlier: of an odd length the larger half lies before it.
    text_follows: text begins where the longer side ends. frames_along: the axis that frames, or layers, count on.
    tokens_at: dimension of the tokens in its embedder's table. looks_up_by_image: it needs a row of that table for every image of a batch.
    asked_by_grid: its embedder is asked with the picture's grid in place of positions, and gives one table for a batch.
    pairing: of the channels that it turns. times_by_frame: each frame has its own time, by its place in the latent.
    refines_text: attention over the text alone goes before the picture's. heeds_rope_options: core's own scaling and shifting of positions
    reaches this family. riflex_pair: the one whose period is nearest to the trained frames, and longer, as RIFLEx's authors identify it;
    HunyuanVideo's is theirs. schedule_by_size: its own scheduler already goes by the picture's size. refusals: kind of run -> why it is not
    possible yet. unplaced: condition of the model -> what it is, for people, where its tokens cannot be told yet. hidden, channels: further
    marks that tell variants of one class apart. assumed: what no mark tells, for people. usual_text: tokens that a prompt is padded to, or
    that a step is reckoned with before its prompt is known. published: what methods' authors use on this family.
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
    by_angles: bool = False
    one_extent: bool = False
    native_frames: int | None = None
    native_seconds: float | None = None
    riflex_pair: int | None = None
    centred: bool = False
    odd_begin_earlier: bool = False
    text_follows: bool = False
    tokens_at: int = 2
    looks_up_by_image: bool = False
    asked_by_grid: bool = False
    pairing: str = NEIGHBOURS
    times_by_frame: bool = False
    frames_along: str = TIME
    refines_text: bool = False
    heeds_rope_options: bool = False
    schedule_by_size: bool = False
    refusals: Mapping[str, str] = field(default_factory=dict)
    unplaced: Mapping[str, str] = field(default_factory=dict)
    hidden: int | None = None
    channels: int | None = None
    assumed: str = ""
    usual_text: int = 512
    published: Published = GENERAL_RULES

    @property
    def native_size(self) -> NativeSize:
        return NativeSize(self.native, self.widest)

    def first_place(self, length: int) -> int:
        """Position of the first of `length` tokens along a side."""
        return -((length + self.odd_begin_earlier) // 2) if self.centred else 0

    @property
    def video(self) -> bool:
        return TIME in self.roles


@dataclass(frozen=True)
class ModelFacts:
    """What a patch may ask of a model before it is put on it. latent_dimensions: 2 for pictures, 3 with frames."""

    architecture: Architecture
    latent_channels: int | None = None
    latent_dimensions: int = 2
