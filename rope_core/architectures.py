"""One row of data per model family: where the rotary embedder sits, what its axes mean, what the model was trained on.

Axes' widths and theta are read from the model itself and never stand here.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import RopeWorksError
from .stack import HEIGHT, INDEX, TIME, WIDTH

TEXT_IMAGE_REFERENCE = "text, image, reference"
IMAGE_ONLY = "image"
BY_POSITION = "by position"


@dataclass(frozen=True)
class Architecture:
    """A family of models that share class and token order.

    classes: names of the transformer's class, in ComfyUI or diffusers. roles: meaning of each rotary axis.
    embedder, patch_layer: attributes of the transformer. patch_order: how a patch is flattened for a linear layer.
    order: what an embedder call holds. native: tokens per side at the trained size; native_frames: latent frames.
    schedule_by_size: its own scheduler already goes by the picture's size.
    centred: positions count from the image's middle, and text begins where the longer side ends.
    mixed_refusal, style_refusal: why mixed resolution and shared attention are not possible yet, empty where they are.
    hidden, channels: further marks that tell variants of one class apart.
    """

    family: str
    classes: tuple[str, ...]
    roles: tuple[str, ...]
    embedder: str
    patch_layer: str
    order: str
    native: float
    pixels_per_token: int = 16
    patch_order: str = "c h w"
    native_frames: int | None = None
    riflex_pair: int | None = None
    centred: bool = False
    schedule_by_size: bool = False
    mixed_refusal: str = ""
    style_refusal: str = ""
    hidden: int | None = None
    channels: int | None = None


_IMAGE = (INDEX, HEIGHT, WIDTH)
_VIDEO = (TIME, HEIGHT, WIDTH)
_WAN_CLASSES = ("WanModel", "VaceWanModel", "CameraWanModel", "WanTransformer3DModel")

ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture("Flux.1", ("Flux", "FluxTransformer2DModel"), _IMAGE, "pe_embedder", "img_in", TEXT_IMAGE_REFERENCE, 1024 / 16),
    Architecture(
        "Flux.2", ("Flux",), (*_IMAGE, INDEX), "pe_embedder", "img_in", TEXT_IMAGE_REFERENCE, 1024 / 16, schedule_by_size=True
    ),
    Architecture("Chroma", ("Chroma",), _IMAGE, "pe_embedder", "img_in", TEXT_IMAGE_REFERENCE, 1024 / 16),
    Architecture(
        "Qwen-Image", ("QwenImageTransformer2DModel",), _IMAGE, "pe_embedder", "img_in", TEXT_IMAGE_REFERENCE, 1328 / 16, centred=True
    ),
    Architecture("Lumina2 / Z-Image", ("NextDiT",), _IMAGE, "rope_embedder", "x_embedder", BY_POSITION, 1024 / 16, patch_order="h w c"),
    Architecture(
        "Wan 2.2 5B", _WAN_CLASSES, _VIDEO, "rope_embedder", "patch_embedding", IMAGE_ONLY, 1280 / 32,
        pixels_per_token=32, native_frames=31, riflex_pair=6, channels=48,
    ),
    Architecture(
        "Wan 480p", _WAN_CLASSES, _VIDEO, "rope_embedder", "patch_embedding", IMAGE_ONLY, 832 / 16,
        native_frames=21, riflex_pair=6, hidden=1536,
    ),
    Architecture(
        "Wan 720p", _WAN_CLASSES, _VIDEO, "rope_embedder", "patch_embedding", IMAGE_ONLY, 1280 / 16, native_frames=21, riflex_pair=6
    ),
    Architecture(
        "HunyuanVideo", ("HunyuanVideo",), _VIDEO, "pe_embedder", "img_in", BY_POSITION, 1280 / 16, native_frames=33, riflex_pair=4,
        mixed_refusal="its text refiner and its reference frames have not been separated from the image yet",
        style_refusal="its text stands before or behind the image depending on the version",
    ),
)  # fmt: skip


def recognise(class_name: str, axes: int, hidden: int | None = None, channels: int | None = None) -> Architecture:
    """The row for a transformer of class `class_name` with `axes` rotary axes, `hidden` width and `channels` latent channels.

    Raises RopeWorksError naming the class found and the families known.
    """
    for row in ARCHITECTURES:
        if class_name not in row.classes or len(row.roles) != axes:
            continue
        if row.hidden not in (None, hidden) or row.channels not in (None, channels):
            continue
        return row
    known = ", ".join(dict.fromkeys(row.family for row in ARCHITECTURES))
    raise RopeWorksError(
        f"this model's transformer is {class_name} with {axes} rotary axes, which RoPE Works does not know. "
        f"Supported: {known}. Connect one of these models, or remove the node."
    )
