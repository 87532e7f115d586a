"""docs/families.md as text: written from outcomes and from the table of families, and read back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "families.md"
WORKS, NOTHING, REFUSED = "works", "nothing to do", "refused: "
MARKS = {WORKS: "✓", NOTHING: "–"}
# Column -> its node's help page.
NODES = {
    "SEGA": "RopePatchSEGA",
    "Extrapolate": "RopePatchExtrapolate",
    "RIFLEx": "RopePatchExtrapolate",
    "CRPA": "MixedResRegionCRPA",
    "BER": "BoundaryExpandReplace",
    "Style Ref": "SharedAttentionStyleRef",
    "RPE-2D": "RPE2DInference",
    "RPE-2D training": "RPE2DTrainingPatch",
    "Inspect": "RopeInspect",
}
NOT_SUPPORTED = " is not supported yet"
COMMAND = "python -m tests.comfyui.draw_families"


def key(family: str, variant: str) -> str:
    return f"{family} / {variant}"


def reason(message: str) -> str:
    """Of a refusal, what stands after the colon, without the advice at its end and the sizes of the run."""
    said = message.partition(": ")[2] or message
    return re.sub(r"( of)? \(\(?[\d, ]+\)?\)", "", said.partition(". ")[0].rstrip("."))


TEMPLATE = """\
# Models and nodes

Written by `{command}` on ComfyUI {core}, {date}.

Every node was run on every model below, built small from ComfyUI's own classes, with random weights. That shows what a node does inside
a model; it says nothing about how pictures look. The same is tested on every ComfyUI found, for the models that it has.

- **✓** works: where it should change nothing (at the native size, at strength 0, with a region over everything, with the grid off) the
  result is the same bit for bit; where it should act the result is another one, and finite; and the model that was given to the node
  stays as it was. Of RPE-2D training only this much: it can be put on, and sampling stays the same.
- **–** nothing to do: pictures have no time axis, and MiniMax H3 lays rows and columns over the same positions at any size.
- **a number**: refused with a message. Below the table stands why.
- **read, not run**: no ComfyUI with this model could be had whole. What RoPE Works meets of it was read, see *Run, and read*, and the
  nodes were run on a stand-in that we wrote after it (`tests/comfyui/in_core/stand_ins.py`); on a ComfyUI with the model the tests take
  the model.

## Which node works on which model

{outcomes}

## What is known of each family

{rows}

A model gets the first row that fits. Where references stand before the picture, text may go on behind each of them. *By position*: the
order depends on ComfyUI's version, and tokens are told by their positions.
*Native size*: the area of a square, in shapes up to the widest trained; *by*: who says so. *Centred*: positions count from the middle
of the picture. *Frames along*: the axis on which frames of a clip, or layers, are counted. *Heeds ScaleROPE*: ComfyUI's node of that
name reaches this family, and patches act on top of it. *Transformers* are ComfyUI's classes, *in diffusers* those of diffusers, see below.
How the rotary channels are split, and theta, is read from the model itself.

## In diffusers

Each of these classes was built small with random weights: what PI draws at twice the trained side is what the class's own embedder draws at
halved positions, and at the trained side nothing changes (`tests/diffusers/test_families.py`). SEGA, Extrapolate (RIFLEx on clips) and
RPE-2D act on all of them. In the last four columns – is refused by name; *context parallelism*: those three under diffusers' own. Other
transformers are refused by the form of their embedder.

{diffusers}

## Refused by name

Every node refuses these models of ComfyUI {core}, and all without rotary positions (SD 1.5, SDXL, SD 3, …), with a message that begins
with what was found:

> *found* is not supported yet. {told}

{refusals}

## Run, and read

The tests in `tests/comfyui` run on whole copies of ComfyUI:

{run}

Of newer ones, up to {newest}, single files could be read, nothing run. What RoPE Works relies on in them is still so:

{read}
"""

# Whole copies: version, commit.
RUN = (("0.33.0", "783545f689a0"), ("0.3.64", "a125cd84b054"))
NEWEST_READ = "0.38.1"
# File of github.com/Comfy-Org/ComfyUI, commit that it was read at, what holds there.
READ = (
    (
        "comfy/ldm/qwen_image21/model.py",
        "08f68f0919d2, b806797696c1 before it",
        "`pe_embedder` is asked once, text on all three axes and on behind references, the picture last and centred; `img_in`, a token for "
        "each latent pixel; `prefix_cache_enabled`, and no cache where `transformer_options` have `qwen_image21_cache` with `device` `off`",
    ),
    (
        "comfy/model_base.py",
        "094c74c1b7f9",
        "arguments of `apply_model` and its wrapper; `QwenImage21`, and its cache emptied when a run begins and ends; `image_slots`",
    ),
    ("comfy/samplers.py", "311c01406130", "the wrapper of `outer_sample`, `latent_shapes`; `sample_sigmas`, `cond_or_uncond`, `uuids`"),
    ("comfy/model_patcher.py", "08d0e510f4e5", "`clone`, attachments, `add_object_patch`, `get_model_object`, `rope_options`, `pre_run`"),
    ("comfy/model_sampling.py", "2fd2083913be", "`CONST`, `percent_to_sigma`, `calculate_input`, `noise_scaling`"),
    (
        "comfy/ldm/modules/attention.py",
        "05080f6022b2",
        "`optimized_attention_override` gets plain tensors and goes before a checkpoint's own attention, `ComfyAttention.function`",
    ),
    ("comfy/ldm/flux/math.py", "980c56cec0e3", "`apply_rope1`; tables end in (pairs, 2, 2), float32"),
    (
        "comfy/ldm/lumina/model.py",
        "617048a59f17",
        "`rope_embedder` is asked for caption and picture apart; `x_embedder`, `pad_tokens_multiple`, `rope_options`. Ming-Image has this "
        "transformer in a model of its own, so it is refused by name",
    ),
    (
        "comfy/ldm/wan/model.py",
        "0c9a69aefdb1",
        "`rope_encode` asks `rope_embedder` for each clip; `patch_embedding`, `patch_size`, `context_latents`, `reference_latent`, "
        "`block_type`, `block_index`",
    ),
    ("comfy/ldm/wan/model_animate2.py", "1e4169356ee7", "`rope_encode` for the pose; `animate2_cache`"),
    (
        "comfy/ldm/lightricks/model.py",
        "e03185cf0810",
        "arguments of `_precompute_freqs_cis`; `freq_grid_generator`, `split_positional_embedding`, `patchify_proj`",
    ),
    (
        "comfy/ldm/minimax/model.py",
        "01a56b76bba3",
        "arguments of `rope_freqs`, of whose angles the table takes cos and sin and nothing else; `rope.inv_freq`; `PackedLayout`, and "
        "`minimax_payload` with `layout`, `keyframes`, `refs`",
    ),
    (
        "comfy/ldm/cosmos/predict2.py",
        "523fba4dbeb0",
        "`pos_embedder` is asked with the grid, `fps`, `device`; `x_embedder`, `patch_spatial`",
    ),
)


def page(outcomes: Mapping[str, Mapping[str, str]], refusals: Mapping[str, str], rows: Sequence[Any], core: str, date: str) -> str:
    """rows: of the table of families. core: the version of ComfyUI that outcomes and refusals come from."""
    return TEMPLATE.format(
        command=COMMAND,
        core=core,
        date=date,
        outcomes="\n".join(outcome_lines(outcomes)),
        rows="\n".join(architecture_lines(rows)),
        diffusers="\n".join(diffusers_lines()),
        told=next(iter(refusals.values())).partition(NOT_SUPPORTED)[2].lstrip(". "),
        refusals="\n".join(refusal_lines(refusals)),
        run="\n".join([_line("version", "commit"), _line("---", "---"), *(_line(version, f"`{commit}`") for version, commit in RUN)]),
        newest=NEWEST_READ,
        read="\n".join(read_lines()),
    )


def outcome_lines(outcomes: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The first table and, below it, the reasons."""
    reasons = list(dict.fromkeys(o.removeprefix(REFUSED) for nodes in outcomes.values() for o in nodes.values() if o.startswith(REFUSED)))
    heads = [f"[{node}](../web/docs/{help_page}.md)" for node, help_page in NODES.items()]
    lines = [_line("family", "model", *heads), _line("---", "---", *[":-:"] * len(heads))]
    for name, nodes in outcomes.items():
        cells = [MARKS.get(nodes[node]) or str(reasons.index(nodes[node].removeprefix(REFUSED)) + 1) for node in NODES]
        lines.append(_line(*name.rsplit(" / ", 1), *cells))
    return [*lines, "", *(f"{number}. {text}" for number, text in enumerate(reasons, 1))]


def read_outcomes(text: str) -> dict[str, dict[str, str]]:
    """What `outcome_lines` wrote."""
    lines = text.partition("## Which node")[2].partition("\n## ")[0].splitlines()
    reasons = dict(line.split(". ", 1) for line in lines if line[:1].isdigit())
    meanings = {**{mark: outcome for outcome, mark in MARKS.items()}, **{number: REFUSED + why for number, why in reasons.items()}}
    found = {}
    for line in [line for line in lines if line.startswith("|")][2:]:
        family, variant, *cells = _cells(line)
        found[key(family, variant)] = {node: meanings[cell] for node, cell in zip(NODES, cells, strict=True)}
    return found


def architecture_lines(rows: Sequence[Any]) -> list[str]:
    """The table of families, as a table for people."""
    from rope_core.hosts.diffusers.families import FAMILIES

    heads = ("family", "models in ComfyUI", "transformers", "in diffusers", "order of tokens", "pixels per token", "native size", "by",
             "centred", "frames along", "heeds ScaleROPE")  # fmt: skip
    lines = [_line(*heads), _line(*["---"] * len(heads))]
    for row in rows:
        marks = [f" ({row.hidden} wide)"] * (row.hidden is not None) + [f" ({row.channels} latent channels)"] * (row.channels is not None)
        frames = f", {row.native_frames} latent frames" if row.native_frames else ""
        lines.append(
            _line(
                row.family + "".join(marks),
                ", ".join(f"`{name}`" for name in row.models),
                ", ".join(f"`{name}`" for name in [name for name in row.classes if name not in FAMILIES] or row.classes),
                ", ".join(f"`{name}`" for name, family in FAMILIES.items() if row in family.rows) or MARKS[NOTHING],
                row.order,
                row.pixels_per_token,
                f"{row.native * row.pixels_per_token:.4g}² px, up to {row.widest:.3g}:1{frames}",
                row.native_source,
                "yes" if row.centred else "no",
                row.frames_along if row.frames_along in row.roles else MARKS[NOTHING],
                "yes" if row.heeds_rope_options else "no",
            )
        )
    return lines


def diffusers_lines() -> list[str]:
    """diffusers' classes, as a table for people."""
    from rope_core.hosts.diffusers.families import FAMILIES
    from rope_core.stack import COARSE_TO_FINE, MIXED, SHARED

    heads = ("transformer", "family", "asked for its table", "native size", "CRPA, BER", "Coarse to Fine", "Style Ref",
             "context parallelism")  # fmt: skip
    lines = [_line(*heads), _line(*["---"] * 4, *[":-:"] * 4)]
    for name, family in FAMILIES.items():
        needs, sizes = {part.needs for part in family.parts}, [f"{row.native * row.pixels_per_token:.4g}² px" for row in family.rows]
        marks = [MARKS[WORKS] if yes else MARKS[NOTHING] for yes in (MIXED in needs, COARSE_TO_FINE in needs, SHARED in needs, family.cut)]
        families = ", ".join(row.family for row in family.rows)
        lines.append(_line(f"`{name}`", families, f"`{family.form.asks}`", ", ".join(sizes), *marks))
    return lines


def refusal_lines(refusals: Mapping[str, str]) -> list[str]:
    lines = [_line("model", "found"), _line("---", "---")]
    return [*lines, *(_line(name, message.partition(NOT_SUPPORTED)[0]) for name, message in refusals.items())]


def read_lines() -> list[str]:
    """Files of newer versions that were read, as a table for people."""
    lines = [_line("file", "commit", "what holds"), _line("---", "---", "---")]
    return [*lines, *(_line(f"`{file}`", commit, what) for file, commit, what in READ)]


def read_refusals(text: str) -> dict[str, str]:
    """Model -> how the message names it."""
    part = text.partition("## Refused by name")[2].partition("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")][2:]
    return dict(_cells(line) for line in lines)


def _line(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _cells(line: str) -> list[str]:
    return line.strip("| ").split(" | ")
