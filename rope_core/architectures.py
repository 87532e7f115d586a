"""One row of data per model family: what its tokens are, where its rotary embedder sits, what it was trained on.

Axes' widths and theta are read from the model itself and never stand here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .architecture import (
    BY_POSITION,
    CHANNELS_LAST,
    CONVOLUTION,
    FLOAT32_CHANNELS_FIRST,
    FLOAT32_CONVOLUTION,
    IMAGE_ONLY,
    IMAGE_TEXT,
    TEXT_IMAGE_REFERENCES,
    TEXT_REFERENCES_IMAGE,
    Architecture,
)
from .errors import RopeWorksError
from .native import side_of
from .pairing import HALVES
from .published import Published, SlowedPairs
from .stack import HEIGHT, INDEX, MIXED, SHARED, TIME, TRAINING, WIDTH

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
_H3_REFUSALS = {TRAINING: "its rows and columns run over the same positions at any size, so there are no others to learn"}
_TEXT_BEHIND = {MIXED: "its text stands behind the picture"}
_REFINES_IMAGE = "parts of it attend to the picture alone, which has not been told from other calls yet"
_ONE_TABLE = {TRAINING: "its embedder gives one table for all pictures of a batch"}
_ALSO_ALONE = "its blocks attend to the picture without the text too, which a reference would not reach"
_UNTOLD = "its attention calls over the picture have not been told from others yet"
_UNTOLD_CALLS = {MIXED: _UNTOLD, SHARED: _UNTOLD}
_BEHIND_THE_TEXT = "its picture's queries come in calls of their own, with the text's and the references' keys before the picture's"
_NO_WRAPPER = "ComfyUI lets nothing into its forward, so a step that is computed twice would draw twice"
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
        side_of(1024, 1024), _PICTURES, _MEGAPIXEL, heeds_rope_options=True, usual_text=256, published=_ON_FLUX,
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
        side_of(1328, 1328), 1664 / 928, "its makers' list of sizes", centred=True, text_follows=True, frames_along=INDEX,
        published=_ON_QWEN_IMAGE,
    ),
    Architecture(
        "Qwen-Image 2.1", ("QwenImage21Transformer2DModel",), ("QwenImage21",), _IMAGE, "pe_embedder", "img_in", TEXT_REFERENCES_IMAGE,
        side_of(2048, 2048), 1664 / 928, "its makers' example of text to image, 2048 px, of edits 1024; widest as Qwen-Image",
        patch=1, centred=True, odd_begin_earlier=True, refusals=dict.fromkeys((MIXED, SHARED), _BEHIND_THE_TEXT),
    ),
    Architecture(
        "Krea 2", ("SingleStreamDiT",), ("Krea2",), _IMAGE, "pe_embedder", "first", TEXT_IMAGE_REFERENCES,
        side_of(1024, 1024), _PICTURES, "its maker's 1K; of the turbo checkpoint it says up to 2K", refines_text=True,
        assumed="1K is assumed; where turbo draws 2K well by itself set native_size to 2048",
    ),
    Architecture(
        "Lumina2 / Z-Image", ("NextDiT",), ("Lumina2",), _IMAGE, "rope_embedder", "x_embedder", BY_POSITION,
        side_of(1024, 1024), _PICTURES, "one megapixel; sources differ, up to four for Z-Image",
        patch_kind=CHANNELS_LAST, heeds_rope_options=True, unplaced={"ref_latents": "reference latents"},
    ),
    Architecture(
        "Z-Image pixel space", ("NextDiTPixelSpace",), ("ZImagePixelSpace",), _IMAGE, "rope_embedder", "x_embedder", BY_POSITION,
        side_of(1024, 1024, 32), _PICTURES, "one megapixel, as of Z-Image",
        pixels_per_token=32, patch_kind=CHANNELS_LAST, heeds_rope_options=True, unplaced={"ref_latents": "reference latents"},
    ),
    Architecture(
        "Mage-Flow", ("MageFlowTransformer2DModel",), ("MageFlow",), _IMAGE, "pe_embedder", "img_in", TEXT_IMAGE_REFERENCES,
        side_of(2048, 2048), 4.0, "its makers' range of training: 512 to 2048 pixels a side", centred=True, odd_begin_earlier=True,
    ),
    Architecture(
        "Chroma Radiance", ("ChromaRadiance",), ("ChromaRadiance",), _IMAGE, "pe_embedder", "img_in_patch", TEXT_IMAGE_REFERENCES,
        side_of(1024, 1024), _PICTURES, _MEGAPIXEL, patch_kind=CONVOLUTION,
        refusals={MIXED: "its last layer looks over the borders of patches, at neighbours that a mixed step does not have"},
    ),
    Architecture(
        "HunyuanImage 2.1", ("HunyuanVideo",), ("HunyuanImage21",), (HEIGHT, WIDTH), "pe_embedder", "img_in", TEXT_REFERENCES_IMAGE,
        side_of(2048, 2048, 32), 2560 / 1536, "its makers' list of sizes", pixels_per_token=32, patch_kind=CONVOLUTION,
    ),
    Architecture(
        "Lens", ("LensTransformer2DModel",), ("Lens",), _IMAGE, "pos_embed", "img_in", IMAGE_TEXT,
        side_of(1664, 1248), 2.0, "its makers' list of sizes", patch=1, centred=True, odd_begin_earlier=True, text_follows=True,
        refusals=_TEXT_BEHIND,
    ),
    Architecture(
        "HiDream I1", ("HiDreamImageTransformer2DModel",), ("HiDream",), _IMAGE, "pe_embedder", "x_embedder.proj", IMAGE_TEXT,
        side_of(1024, 1024), 1360 / 768, "its makers' list of sizes", patch_kind=CHANNELS_LAST, tokens_at=1, refusals=_TEXT_BEHIND,
        unplaced={"image_cond": "pictures to edit (HiDream E1)"},
    ),
    Architecture(
        "OmniGen2", ("OmniGen2Transformer2DModel",), ("Omnigen2",), _IMAGE, "rope_embedder.rope_embedder", "x_embedder",
        TEXT_REFERENCES_IMAGE, side_of(1024, 1024), _PICTURES, "its makers' code: at most one megapixel",
        patch_kind=CHANNELS_LAST, looks_up_by_image=True, refusals={MIXED: _REFINES_IMAGE, TRAINING: _NO_WRAPPER},
    ),
    Architecture(
        "Boogu", ("BooguTransformer2DModel",), ("Boogu",), _IMAGE, "rope_embedder.rope_embedder", "x_embedder",
        TEXT_REFERENCES_IMAGE, side_of(1024, 1024), _PICTURES, "ComfyUI's template; hosts of it name 2K as the most",
        patch_kind=CHANNELS_LAST, looks_up_by_image=True,
        refusals={MIXED: _REFINES_IMAGE, SHARED: _ALSO_ALONE, TRAINING: _NO_WRAPPER},
        assumed="1K is assumed; where it draws 2K well by itself set native_size to 2048",
    ),
    Architecture(
        "Anima", ("Anima",), ("Anima",), _IMAGE, "pos_embedder", "x_embedder.proj.1", IMAGE_ONLY,
        side_of(1024, 1024), _PICTURES, "its makers: about one megapixel", frames_along=INDEX, asked_by_grid=True,
        pairing=HALVES, refusals=_ONE_TABLE,
    ),
    Architecture(
        "Cosmos Predict2", ("MiniTrainDIT",), ("CosmosPredict2",), _VIDEO, "pos_embedder", "x_embedder.proj.1", IMAGE_ONLY,
        side_of(1024, 1024), _FILMS, "its makers' megapixel of pictures; films have 1280×704", native_frames=24, riflex_pair=5,
        asked_by_grid=True, pairing=HALVES, times_by_frame=True, refusals=_ONE_TABLE,
    ),
    Architecture(
        "Kandinsky 5", ("Kandinsky5",), ("Kandinsky5",), _VIDEO, "rope_embedder_3d", "visual_embeddings.in_layer", IMAGE_ONLY,
        side_of(1280, 768), _FILMS, "its makers' largest size, 1280×768", native_frames=31, riflex_pair=3, patch_kind=CHANNELS_LAST,
        refusals=_UNTOLD_CALLS, hidden=4096,
    ),
    Architecture(
        "Kandinsky 5", ("Kandinsky5",), ("Kandinsky5",), _VIDEO, "rope_embedder_3d", "visual_embeddings.in_layer", IMAGE_ONLY,
        side_of(768, 512), 768 / 512, "its makers' size, 768×512", native_frames=31, riflex_pair=3, patch_kind=CHANNELS_LAST,
        refusals=_UNTOLD_CALLS,
    ),
    Architecture(
        "Kandinsky 5 Image", ("Kandinsky5",), ("Kandinsky5Image",), _IMAGE, "rope_embedder_3d", "visual_embeddings.in_layer", IMAGE_ONLY,
        side_of(1024, 1024), 1408 / 640, "its makers' list of sizes", frames_along=INDEX, patch_kind=CHANNELS_LAST, refusals=_UNTOLD_CALLS,
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
        "MiniMax H3", ("MiniMaxH3Model",), ("MiniMaxH3",), _VIDEO, "rope_freqs", "video_patch_proj", TEXT_REFERENCES_IMAGE,
        side_of(1344, 768, 32), 1344 / 768, "ComfyUI's nodes for it: at most 1344×768, trained on 124 to 362 pictures",
        pixels_per_token=32, patch_kind=FLOAT32_CHANNELS_FIRST, native_frames=107, by_angles=True, one_extent=True, pairing=HALVES,
        refusals=_H3_REFUSALS,
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


def without_attention(row: Architecture) -> Architecture:
    """A row whose blocks this core runs without telling them what nodes want of their attention."""
    return replace(row, refusals={**row.refusals, SHARED: "this ComfyUI does not let nodes into its attention; update it"})


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
