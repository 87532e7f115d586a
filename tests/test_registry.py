"""What the Comfy registry asks of a pack, and forbids in what it ships: https://docs.comfy.org/registry/standards."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
from PIL import Image

from rope_core.version import VERSION

ROOT = Path(__file__).resolve().parents[1]
INSTALLS = (
    "requirements*.txt",
    "install.py",
    "uninstall.py",
    "setup.py",
    "prestartup_script.py",
    "*.sh",
    "*.bat",
    "*.exe",
    "*.so",
    "*.dll",
)
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "system", "popen", "startfile"}
FORBIDDEN_MODULES = {
    "subprocess", "pip", "ensurepip", "pickle", "marshal", "ctypes", "socket", "requests", "httpx", "aiohttp", "urllib", "http", "runpy",
}  # fmt: skip


def shipped() -> list[Path]:
    """Tracked files that .comfyignore does not leave out, relative to the pack."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S607
    ignored = tuple((ROOT / ".comfyignore").read_text().split())
    return [Path(name) for name in listed.stdout.split("\0") if name and not name.startswith(ignored)]


def forbidden(source: str) -> Iterator[str]:
    """What of Python source the registry's scan would stop at."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = node.func
            method = called.attr if isinstance(called, ast.Attribute) and getattr(called.value, "id", "") == "os" else ""
            name = called.id if isinstance(called, ast.Name) else method
            if name in FORBIDDEN_CALLS:
                yield f"line {node.lineno}: {name}"
        imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            imported = [node.module or ""]
        yield from (f"line {node.lineno}: import {name}" for name in imported if name.split(".")[0] in FORBIDDEN_MODULES)


@pytest.mark.parametrize(
    "source", ["eval('1')", "import os\nos.system('ls')", "import subprocess", "from urllib.request import urlopen", "__import__('pip')"]
)
def test_the_scan_sees_what_it_looks_for(source: str) -> None:
    assert list(forbidden(source))


def test_what_is_shipped_runs_no_code_that_it_does_not_hold() -> None:
    modules = [path for path in shipped() if path.suffix == ".py"]
    assert {"__init__.py", "nodes", "rope_core", "lab"} <= {path.parts[0] for path in modules}
    assert {str(path): told for path in modules if (told := list(forbidden((ROOT / path).read_text())))} == {}


def test_what_is_shipped_installs_nothing() -> None:
    assert [path for path in shipped() if any(fnmatch(path.name, pattern) for pattern in INSTALLS)] == []


def section(name: str) -> dict[str, str]:
    """Plain values of a section of pyproject.toml; Python 3.10 reads no TOML."""
    text = (ROOT / "pyproject.toml").read_text().split(f"[{name}]\n")[1].split("\n[")[0]
    return dict(re.findall(r'^([\w-]+) = "?(.*?)"?$', text, re.MULTILINE))


def test_pyproject_says_what_the_registry_asks_for() -> None:
    project, comfy, urls = section("project"), section("tool.comfy"), section("project.urls")
    assert re.fullmatch(r"[a-z][a-z0-9_-]{0,99}", project["name"])
    assert "comfyui" not in project["name"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert project["version"] == VERSION, "what a log says"
    assert project["description"]
    assert project["dependencies"] == "[]", "ComfyUI brings torch; nothing else is installed beside it"
    assert (ROOT / project["license"].split('"')[1]).exists()
    assert urls["Repository"].startswith("https://github.com/")
    assert re.fullmatch(r"[a-z0-9-]+", comfy["PublisherId"])
    assert comfy["DisplayName"]
    assert comfy["requires-comfyui"] == ">=0.3.64"


@pytest.mark.parametrize("kind", ["Icon", "Banner"])
def test_the_registry_finds_a_picture_of_a_shape_that_it_takes(kind: str) -> None:
    repository = section("project.urls")["Repository"].removeprefix("https://github.com/")
    address, branch = section("tool.comfy")[kind], f"https://raw.githubusercontent.com/{repository}/main/"
    assert address.startswith(branch)
    width, height = Image.open(ROOT / address.removeprefix(branch)).size
    assert width == height <= 400 if kind == "Icon" else 9 * width == 21 * height


def test_ci_audits_after_the_tests_and_says_so_where_it_cannot(tmp_path: Path) -> None:
    steps = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    assert steps.index("bash .ci/run") < steps.index("bash .ci/audit")
    here = tmp_path / "pack"
    (here / ".ci").mkdir(parents=True)
    (here / ".venv" / "bin").mkdir(parents=True)
    (here / ".ci" / "audit").write_text((ROOT / ".ci" / "audit").read_text())
    python = here / ".venv" / "bin" / "python"
    python.write_text("#!/bin/sh\nexit 1\n")  # a service that does not answer
    python.chmod(0o755)
    done = subprocess.run(["bash", ".ci/audit"], cwd=here, capture_output=True, text=True, check=False)  # noqa: S607
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("not audited: ")
