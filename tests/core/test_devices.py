"""On an accelerator nothing is copied to or from it and nothing mixes devices.

A stand-in accelerator without memory plays the GPU, in a process of its own because a backend stays registered for good.
A copy between host and device, or reading a value, makes a real GPU finish its queue first: one stall a step.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

from rope_core import METHODS

ROOT = Path(__file__).resolve().parents[2]
IMAGE = [
    *METHODS,
    "sega",
    "sega windowed",
    "sega physical",
    "text mask",
    "reference mask",
    "foreign table",
    "rpe2d",
    "rpe2d normalised",
    "record",
]
TWO_DEVICES = ["saliency of prompts on two devices", "record of prompts on two devices"]
PROBES = ["linear probe", "convolution probe", "projection"]
TABLES_ON_THE_HOST = ["grid", "grid on a foreign table", "mask", "mask with references", "moved positions"]

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"), reason="this torch has no stand-in accelerator"
)

SCRIPT = r"""
import json, traceback, torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from rope_core import METHODS, Call, Extrapolate, Rpe2d, Sega, Stack, Window
from rope_core.layout import GridLayout, MaskLayout, plan_table
from rope_core.extrapolate.projection import probe_convolution, probe_linear, project
from rope_core.inspect import record as record_module
from rope_core.inspect.record import RunRecord
from rope_core.mixed.saliency import saliency
from rope_core.stack import HEIGHT, INDEX, TIME, WIDTH, AxisSpan

backend_registration._setup_privateuseone_for_python_backend("standin")
TEXT, SIDE = 3, 8
TOKENS = TEXT + SIDE * SIDE

class Copies(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, given=(), named=None):
        answer = function(*given, **(named or {}))
        came = {x.device.type for x in given if isinstance(x, torch.Tensor)}
        if isinstance(answer, torch.Tensor) and came and answer.device.type not in came:
            self.seen.append(f"{function}: {sorted(came)} -> {answer.device.type}")
        return answer

def sample(device, tables, method="pi"):
    first = TIME if method == "riflex" else INDEX
    axes = (AxisSpan(first, 4, 1e4, 80), AxisSpan(HEIGHT, 6, 1e4, SIDE, 4.0), AxisSpan(WIDTH, 6, 1e4, SIDE, 4.0))
    token_map = torch.zeros(2, 1, SIDE, SIDE, device=tables)
    call = Call("Test", axes, torch.zeros((), dtype=torch.float64, device=tables), 16.0, lambda: token_map, riflex_pair=2)
    ids = torch.zeros(1, TOKENS, 3, device=device)
    base = torch.zeros(1, 1, TOKENS, 16, 2, 2, device=device)
    mask = torch.zeros(TOKENS, dtype=torch.bool, device=device)
    return call, ids, (lambda tokens: base[:, :, tokens]), mask

def tables(patch, device, on, layout="grid", plain=True):
    call, ids, base, mask = sample(device, on, getattr(patch, "method", "pi"))
    where = {"grid": GridLayout((1, SIDE, SIDE), TEXT), "text": MaskLayout(mask), "reference": MaskLayout(mask, mask)}[layout]
    copies = Copies()
    with copies:
        table = plan_table(ids, Stack((patch,)).resolve(call), call, where, base, plain)
    assert table.device.type == device, table.device
    return copies.seen

def noted():
    call, *_ = sample(*GPU)
    plan, record, copies = Stack((Sega(),)).resolve(call), RunRecord(), Copies()
    with copies:
        for _ in range(300):
            record.axes = call.axes
            record.note(call.sigma, plan)
    assert record._noted[0].magnitudes[1].device.type == "standin"
    return copies.seen

def on_two_devices(what):
    first, second = (torch.zeros(1, 4, 16, 16, device=device) for device in ("standin", "cpu"))
    if what == "saliency":
        saliency(first, second, 2)
        saliency(second, first, 2)
        return []
    record = RunRecord()
    for device in ("standin", "cpu"):
        call, *_ = sample(device, device)
        record.axes = call.axes
        record.note(call.sigma, Stack((Sega(),)).resolve(call))
    record_module.step_ends = lambda sigmas: torch.zeros(1, dtype=torch.long)  # reads values
    return [] if record.last_run("cpu").sigmas.device.type == "cpu" else ["not brought together"]

def probes(what):
    device = torch.device("standin")
    linear, convolution = torch.nn.Linear(64, 8, device=device), torch.nn.Conv3d(16, 8, (1, 2, 2), (1, 2, 2), device=device)
    weights, latent = torch.zeros(16, 1, 2, 2, device=device), torch.zeros(1, 16, 8, 8, device=device)
    copies = Copies()
    with torch.no_grad(), copies:
        if what == "linear":
            probe_linear(linear, 16, (1, 2, 2), "c h w", torch.float32, device)
        elif what == "convolution":
            probe_convolution(convolution, (16, 1, 2, 2), torch.float32, device)
        else:
            project(latent, weights)
    return copies.seen

GPU = ("standin", "standin")
checks = {method: lambda method=method: tables(Extrapolate(method), *GPU) for method in METHODS}
checks |= {
    "sega": lambda: tables(Sega(), *GPU),
    "sega windowed": lambda: tables(Sega(window=Window(0.2, 0.8)), *GPU),
    "sega physical": lambda: tables(Sega(band_lookup="physical"), *GPU),
    "text mask": lambda: tables(Sega(), *GPU, "text"),
    "reference mask": lambda: tables(Sega(), *GPU, "reference"),
    "foreign table": lambda: tables(Sega(), *GPU, plain=False),
    "rpe2d": lambda: tables(Rpe2d(16, trained=True, scale_attention=True), *GPU),
    "rpe2d normalised": lambda: tables(Rpe2d(16, "normalised"), *GPU, "reference"),
    "record": noted,
    "saliency of prompts on two devices": lambda: on_two_devices("saliency"),
    "record of prompts on two devices": lambda: on_two_devices("record"),
    "linear probe": lambda: probes("linear"),
    "convolution probe": lambda: probes("convolution"),
    "projection": lambda: probes("projection"),
    "grid": lambda: tables(Sega(), "standin", "cpu") and [],
    "grid on a foreign table": lambda: tables(Sega(), "standin", "cpu", plain=False) and [],
    "mask": lambda: tables(Sega(), "standin", "cpu", "text") and [],
    "mask with references": lambda: tables(Sega(), "standin", "cpu", "reference") and [],
    "moved positions": lambda: tables(Rpe2d(16, scale_attention=True), "standin", "cpu") and [],
}
answers = {}
for name, check in checks.items():
    try:
        with FakeTensorMode():
            answers[name] = check()
    except Exception as error:
        place = [frame for frame in traceback.extract_tb(error.__traceback__) if "rope_core" in frame.filename][-1]
        answers[name] = [f"{place.name}, line {place.lineno}: {type(error).__name__}: {str(error)[:90]}"]
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers() -> dict[str, list[str]]:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("what", IMAGE)
def test_a_plan_on_the_accelerator_is_resolved_and_tabled_without_a_copy(answers, what):
    assert answers[what] == []


@pytest.mark.parametrize("what", PROBES)
def test_the_token_map_is_found_without_a_copy(answers, what):
    assert answers[what] == []


@pytest.mark.parametrize("what", TABLES_ON_THE_HOST)
def test_tables_built_on_the_host_reach_an_accelerator_without_float64(answers, what):
    assert answers[what] == []


@pytest.mark.parametrize("what", TWO_DEVICES)
def test_what_prompts_on_two_devices_leave_is_brought_together(answers, what):
    assert answers[what] == []
