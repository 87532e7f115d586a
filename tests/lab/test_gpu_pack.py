"""A copy of the repository becomes a pack, a bare environment is made ready from it without a network, and measures there.

The environment sees torch and what the machine is said to have beside it, and nothing else.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lab.cores import HOW_TO, find_cores
from lab.gpu.pack import GIVEN, LIMIT
from lab.gpu.run import LIMITS

ROOT = Path(__file__).resolve().parents[2]
NO_NETWORK = re.compile(r"NewConnectionError|Failed to establish|Temporary failure in name resolution|Network is unreachable|ProxyError")
# Under the core's interpreter: everything in its site-packages that these packages need, as the installed files tell.
CLOSURE = """
import importlib.metadata, json, re, sys
found, left = {}, sys.argv[1:]
while left:
    name = re.sub(r"[-_.]+", "-", left.pop()).lower()
    try:
        part = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        continue
    if name not in found:
        found[name] = part
        left += [re.match(r"[\\w.-]+", line).group() for line in part.requires or [] if "extra ==" not in line]
tops = {str(part.locate_file(file.parts[0])) for part in found.values() for file in part.files or [] if file.parts[0] != ".."}
print(json.dumps(sorted(top for top in tops if "__pycache__" not in top)))
"""


def run(*command: object, cwd: Path, **environment: str) -> str:
    # Neither this repository's own installation nor a pip configuration may help.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=clean | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's own files as they are now, without pictures and weights."""
    if not find_cores():
        pytest.skip(HOW_TO)
    folder = tmp_path_factory.mktemp("copy")
    listed = run("git", "ls-files", "-co", "--exclude-standard", "*.py", ".gitignore", cwd=ROOT).splitlines()
    for name in listed:
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    run("git", "init", "-q", cwd=folder)
    run("git", "add", "-A", cwd=folder)
    run("git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-qm", "copy", cwd=folder)
    return folder


def packed(copy: Path, *options: str) -> str:
    try:
        return run(sys.executable, "-m", "lab", "gpu", "pack", *options, cwd=copy, PYTHONPATH=str(copy))
    except AssertionError as error:
        if NO_NETWORK.search(str(error)):
            pytest.skip("pip has no network to download wheels from")
        raise


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment."""
    python, folder = find_cores()[0].python, tmp_path_factory.mktemp("bare")
    (folder / "given").mkdir()
    for top in json.loads(run(python, "-c", CLOSURE, *GIVEN, cwd=folder)):
        (folder / "given" / Path(top).name).symlink_to(top)
    run(python, "-m", "venv", folder / "env", cwd=folder)
    site = next((folder / "env" / "lib").glob("python*/site-packages"))
    (site / "given.pth").write_text(f"{folder / 'given'}\n")
    return folder / "env" / "bin" / "python"


@pytest.fixture(scope="module")
def ready(copy: Path, bare: Path) -> Path:
    version = run(bare, "-c", "import sys; print('%d.%d' % sys.version_info[:2])", cwd=copy).strip()
    packed(copy, "--python", version)
    run(bare, "-m", "lab", "gpu", "ready", cwd=copy, PIP_NO_INDEX="1", PIP_CONFIG_FILE=os.devnull, HTTPS_PROXY="http://127.0.0.1:9")
    return copy


def test_the_pack_for_the_machine_is_small_and_stays_out_of_git(copy):
    said = packed(copy)
    folder = copy / ".gpu"
    facts = json.loads((folder / "manifest.json").read_text())
    assert facts["python"] == "3.12"
    assert facts["core"] == find_cores()[0].version
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= LIMIT
    assert all(re.search(r"-(py3|py2\.py3|cp312|cp\d+-abi3)-", name) or "abi3" in name for name in facts["wheels"]), facts["wheels"]
    assert {"diffusers", "comfy_kitchen", "torchsde"} <= {name.split("-")[0] for name in facts["wheels"]}
    assert f"ComfyUI {facts['core']}" in said
    assert "travels with the repository's" in said
    assert run("git", "status", "--porcelain", cwd=copy) == ""


def test_a_bare_environment_is_made_ready_without_a_network(ready, bare):
    seen = run(bare, "-c", "import importlib.util as u; print(*[bool(u.find_spec(n)) for n in ('torch', 'diffusers', 'comfy')])", cwd=ready)
    assert seen.split() == ["True", "False", "False"], "only torch and what comes with it is there before"
    opened = "from pathlib import Path; from lab.gpu.place import *; p = open_place(str(core_here().path), True, Path()); print(*p.nodes)"
    nodes = run(bare, "-c", opened + "; import diffusers", cwd=ready).split()
    assert {"RopePatchSEGA", "SharedAttentionStyleRef", "MixedResRegionCRPA"} <= set(nodes)


def test_another_python_is_told_which_pack_it_needs(ready, bare):
    manifest = ready / ".gpu" / "manifest.json"
    before = manifest.read_text()
    manifest.write_text(json.dumps(json.loads(before) | {"python": "3.1"}))
    done = subprocess.run([bare, "-m", "lab", "gpu", "ready"], cwd=ready, capture_output=True, text=True, check=False)
    manifest.write_text(before)
    assert done.returncode != 0
    assert "gpu pack --python" in done.stderr
    assert (ready / ".gpu" / "site").is_dir(), "what was ready stays so"


def test_every_check_passes_at_tiny_shapes(ready, bare, tmp_path):
    out = tmp_path / "out"
    said = run(bare, "-m", "lab", "gpu", "run", "--small", "--out", out, cwd=ready)
    report = json.loads((out / "report.json").read_text())
    wrong = {name: found for name, found in report["checks"].items() if found["status"] != "ok"}
    assert not wrong, said + json.dumps({name: [found.get("reason"), found.get("wrong")] for name, found in wrong.items()})
    assert report["checks"].keys() == LIMITS.keys()
    assert report["small"]
    assert report["machine"]["device"] in ("cpu", "cuda")
    assert len(list(out.iterdir())) <= 6
    assert max(path.stat().st_size for path in out.iterdir()) < 16 * 2**20
    made = run(
        sys.executable, "-m", "lab", "gpu", "page", out / "report.json", "--out", tmp_path / "page", cwd=ready, PYTHONPATH=str(ready)
    )
    assert "Page:" in made
    assert {path.suffix for path in (tmp_path / "page").iterdir()} == {".md", ".json", ".png"}
