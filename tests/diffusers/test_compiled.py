"""A compiled transformer that is patched draws what it draws as it is written."""

from __future__ import annotations

from typing import Any

import torch

from rope_core import Sega
from rope_core.hosts.diffusers import patched
from tests.diffusers.tiny import NATIVE, drawn, flux, flux_call, region, style


class Counting:
    """A compiler that leaves graphs as they are and counts their runs."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, graph: Any, _: Any) -> Any:
        def run(*given: Any) -> Any:
            self.runs += 1
            return graph(*given)

        return run


@torch.no_grad()
def test_compiled_blocks_run_tables_as_graphs_and_our_attention_as_written(caplog):
    model, call = flux(), flux_call()
    patches = {"sega": [Sega()], "mixed": [region()], "style": [style()]}
    expected = {name: drawn(model, *given, **call) for name, given in patches.items()}
    plain, graphs = model(**call)[0], Counting()
    model.compile_repeated_blocks(fullgraph=True, backend=graphs)
    torch.testing.assert_close(model(**call)[0], plain, rtol=0, atol=1e-5)
    caplog.set_level("INFO", "ropeworks")
    for name, given in patches.items():
        graphs.runs = 0
        torch.testing.assert_close(drawn(model, *given, **call), expected[name], rtol=0, atol=1e-5)
        assert graphs.runs == (2 if name == "sega" else 0)
    assert caplog.text.count("under mixed resolution they run as they are written") == 1
    graphs.runs = 0
    torch.testing.assert_close(model(**call)[0], plain, rtol=0, atol=1e-5)
    assert graphs.runs == 2


@torch.no_grad()
def test_a_transformer_compiled_as_a_whole_runs_as_written_while_it_is_patched(caplog):
    model, call = flux(), flux_call()
    expected, plain = drawn(model, Sega(), **call), model(**call)[0]
    model.compile(backend="eager")
    caplog.set_level("INFO", "ropeworks")
    assert torch.equal(drawn(model, Sega(), **call), expected)
    assert "compiled as a whole" in caplog.text
    torch.testing.assert_close(model(**call)[0], plain, rtol=0, atol=1e-5)
    wrapped = torch.compile(flux(), backend="eager")
    with patched(wrapped, Sega(), native_pixels=NATIVE):
        assert torch.equal(wrapped(**call)[0], expected)
