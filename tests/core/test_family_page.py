"""docs/families.md and the table of families say the same. What it says of nodes is tested inside a core."""

from __future__ import annotations

from family_page import PAGE, architecture_lines, diffusers_lines, read_outcomes

from rope_core.architectures import ARCHITECTURES

TEXT = PAGE.read_text(encoding="utf-8")
ADVICE = "python -m tests.comfyui.draw_families writes the page anew"


def test_the_page_shows_every_row_as_it_is() -> None:
    assert "\n".join(architecture_lines(ARCHITECTURES)) in TEXT, ADVICE
    assert "\n".join(diffusers_lines()) in TEXT, ADVICE


def test_every_family_is_run_and_every_reason_for_a_refusal_stands_there() -> None:
    assert {name.rsplit(" / ", 1)[0] for name in read_outcomes(TEXT)} == {row.family for row in ARCHITECTURES}, ADVICE
    assert all(reason in TEXT for row in ARCHITECTURES for reason in row.refusals.values()), ADVICE
