"""Every language says all that English says: node texts for the frontend, and help pages that match theirs part by part."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
LANGUAGES = ("zh", "zh-TW", "ja", "ko", "fr", "es", "ru", "pt-BR")
ENGLISH_PAGES = sorted((ROOT / "web" / "docs").glob("*.md"))
PARTS = {
    "headings": re.compile(r"^#+ ", re.MULTILINE),
    "rows of tables": re.compile(r"^\|", re.MULTILINE),
    "items of lists": re.compile(r"^ *(?:-|\d+\.) ", re.MULTILINE),
    "pictures": re.compile(r"!\[[^\]]*\]\(([^)]+)\)"),
    "names and values": re.compile(r"`[^`\n]+`"),
    "links": re.compile(r"(?<!!)\[[^\]]*\]\(([^)]+)\)"),
}


def node_texts(language: str) -> dict[str, Any]:
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def texts(told: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for key, value in told.items():
        if isinstance(value, dict):
            yield from texts(value, f"{path}/{key}")
        else:
            yield f"{path}/{key}", value


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_of_a_node_is_translated(language: str) -> None:
    english, found = dict(texts(node_texts("en"))), dict(texts(node_texts(language)))
    assert found.keys() == english.keys()
    assert [path for path, text in found.items() if not text.strip()] == []
    # The frontend reads them as messages with placeholders.
    assert [path for path, text in found.items() if re.search(r"[{}@|]", text)] == []
    same = [path for path, text in english.items() if path.endswith(("/tooltip", "/description")) and found[path] == text]
    assert same == []


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("page", ENGLISH_PAGES, ids=lambda page: page.stem)
def test_a_help_page_says_in_every_language_what_it_says_in_english(page: Path, language: str) -> None:
    english = page.read_text(encoding="utf-8")
    found = (page.with_suffix("") / f"{language}.md").read_text(encoding="utf-8")
    for what, pattern in PARTS.items():
        expected, there = pattern.findall(english), pattern.findall(found)
        assert sorted(there) == sorted(expected), what
