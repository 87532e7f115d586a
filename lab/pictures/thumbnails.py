"""Thumbnails of the workflows for large models: what the same nodes draw with the bundled model, and a line that says so.

python -m lab.pictures.thumbnails
"""

from __future__ import annotations

from PIL import Image, ImageDraw

from ..cores import PACK
from .drawing import INK, PAPER, font_of, wrapped

SAME_NODES = {
    "coarse_to_fine_4k_flux1_dev": ("coarse_to_fine_tiny", "FLUX.1-dev"),
    "coarse_to_fine_flux1_dev": ("coarse_to_fine_tiny", "FLUX.1-dev"),
    "coarse_to_fine_wan22_5b": ("coarse_to_fine_tiny", "Wan 2.2 5B"),
    "extrapolate_wan22_5b": ("extrapolate_tiny", "Wan 2.2 5B"),
    "region_mask_flux1_dev": ("region_mask_tiny", "FLUX.1-dev"),
    "rpe2d_flux1_dev": ("rpe2d_tiny", "FLUX.1-dev"),
    "rpe2d_train_flux1_dev": ("rpe2d_train_tiny", "FLUX.1-dev"),
    "sega_flux1_dev": ("sega_tiny", "FLUX.1-dev"),
    "sega_krea2": ("sega_tiny", "Krea 2"),
    "sega_ltx2": ("sega_tiny", "LTX-2.5"),
    "sega_qwen_image": ("sega_tiny", "Qwen-Image"),
    "sega_z_image": ("sega_tiny", "Z-Image"),
    "style_ref_flux1_dev": ("style_ref_tiny", "FLUX.1-dev"),
}
FOLDER = PACK / "example_workflows"
LARGEST = (768, 384)
LETTERS, MARGIN = 22, 12


def thumbnail(source: Image.Image, model: str) -> Image.Image:
    source = source.convert("RGB")
    source.thumbnail(LARGEST)
    font = font_of(LETTERS)
    said = wrapped(f"For {model}. Pictured: the same nodes on the bundled tiny model.", font, source.width - 2 * MARGIN)
    band = (said.count("\n") + 1) * round(LETTERS * 1.4) + 2 * MARGIN
    page = Image.new("RGB", (source.width, source.height + band), PAPER)
    page.paste(source)
    ImageDraw.Draw(page).multiline_text((MARGIN, source.height + MARGIN), said, INK, font, spacing=round(LETTERS * 0.4))
    return page


def main() -> None:
    for name, (tiny, model) in SAME_NODES.items():
        with Image.open(FOLDER / f"{tiny}.jpg") as source:
            thumbnail(source, model).save(FOLDER / f"{name}.jpg", quality=88)


if __name__ == "__main__":
    main()
