"""The rules of the house that a machine can check."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[1]


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S607
    return [ROOT / name for name in listed.stdout.split("\0") if name]


@pytest.mark.parametrize("arguments", [["check", "."], ["format", "--check", "."]], ids=["lint", "format"])
def test_ruff(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "ruff", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_types_of_rope_core() -> None:
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_modules_stay_readable() -> None:
    modules = [path for path in tracked("*.py") if "tests" not in path.relative_to(ROOT).parts]
    long = {path.name: count for path in modules if (count := len(path.read_text().splitlines())) > 300}
    assert not long


def test_every_node_has_help_a_name_and_a_workflow() -> None:
    ids = {match for path in (ROOT / "nodes").glob("*.py") for match in re.findall(r'node_id="(\w+)"', path.read_text())}
    names = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text())
    used = {
        node["class_type"] for path in (ROOT / "example_workflows" / "api").glob("*.json") for node in json.loads(path.read_text()).values()
    }
    assert ids
    assert ids == names.keys()
    assert ids <= used
    pages = {path.stem: path.read_text() for path in (ROOT / "web" / "docs").glob("*.md")}
    assert pages.keys() == ids
    assert [name for name, page in pages.items() if not re.search(rf"^!\[.+\]\({name}\.(jpg|png)\)$", page, re.MULTILINE)] == []


def test_ci_runs_the_commands_that_the_readme_gives() -> None:
    readme, script = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    command = next(line for line in script.splitlines() if "pytest" in line and not line.startswith("#"))
    assert command.replace(" -q", "") in readme


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "web" / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_of_a_page_lead_to_files(page: Path) -> None:
    """ComfyUI counts those of a help page from the docs folder, those of its translation NODE/LANGUAGE.md too."""
    text = page.read_text(encoding="utf-8")
    help_pages = ROOT / "web" / "docs"
    folder = help_pages if help_pages in page.parents else page.parent
    for target in re.findall(r"\]\((?!https?:|#|/)([^)#]+)[^)]*\)", text) + re.findall(r'<img src="(?!https?:)([^"]+)"', text):
        assert (folder / unquote(target)).exists(), target
