"""Every node on tiny models: on the device against the CPU, bit by bit where it must not act, other precisions, kernels and compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from .. import cases
from ..cases import chained
from ..models import Made, make, sample
from ..place import Place

INFERENCE = False  # torch.compile
Row = tuple[str, Callable[[], dict[str, Any]]]
SHAPES = {"flux": (1, 16, 24, 32), "wan": (1, 16, 3, 16, 24), "qwen": (1, 16, 1, 16, 24), "long wan": (1, 16, 60, 8, 8)}
NATIVE, LARGE_NATIVE = 64, 4096  # pixels a side; the shapes are beyond the one and below the other
FAR, NEAR = 1e-3, 1e-4
GRAPHS = {"style, refresh 1": 2, "style, refresh 4": 2}  # the reference's own pass has a length of its own


def rows(place: Place) -> Iterator[Row]:
    setup = Setup(place)
    for part in (_against_the_cpu, _untouched, _precisions, _kernels, _compiled):
        yield from part(setup)


class Setup:
    def __init__(self, place: Place) -> None:
        self.place = place
        # In TF32 a convolution is as far from the CPU's as bf16.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False

    @cache  # noqa: B019 (as long as the check)
    def made(self, clip: str, device: torch.device, dtype: torch.dtype = torch.float32, native: int = NATIVE, computes: Any = None) -> Made:
        return make(clip.rsplit(maxsplit=1)[-1], False, device, dtype, computes, native)

    @cache  # noqa: B019
    def plain(self, clip: str, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
        made = self.made(clip, device, dtype)
        return sample(made, made.model, SHAPES[clip])

    def patched(self, clip: str, links: Any, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
        made = self.made(clip, device, dtype)
        return sample(made, chained(self.place, made, links), SHAPES[clip])


def apart(a: Tensor, b: Tensor) -> float:
    """Distance over length, both in float32."""
    return float(torch.linalg.vector_norm(a.float() - b.float()) / torch.linalg.vector_norm(b.float()))


def _against_the_cpu(setup: Setup) -> Iterator[Row]:
    place, cpu = setup.place, torch.device("cpu")

    def compared(family: str, links: Any) -> dict[str, Any]:
        here, there = (setup.patched(family, links, device) for device in (place.device, cpu))
        plain = apart(setup.plain(family, place.device), setup.plain(family, cpu))
        acts = apart(there, setup.plain(family, cpu))
        far = apart(here, there)
        return {"ok": far <= min(max(NEAR, 10 * plain), FAR) and acts > 0, "apart": far, "plain_apart": plain, "acts_by": acts}

    for family in ("flux", "wan", "qwen"):
        chains = cases.single(SHAPES[family], cases.THREE_STAGES)
        for name, links in (chains if family == "flux" else cases.few(place, chains)).items():
            yield f"as on the CPU: {family}, {name}", partial(compared, family, links)
    for name, links in cases.together(SHAPES["flux"], cases.THREE_STAGES).items():
        yield f"as on the CPU: flux, {name}", partial(compared, "flux", links)
    for method in [] if place.small else cases.methods(place):
        yield f"as on the CPU: flux, {method}", partial(compared, "flux", [("RopePatchExtrapolate", {"method": method})])
    yield "as on the CPU: long wan, riflex", partial(compared, "long wan", [("RopePatchExtrapolate", {"method": "riflex"})])


def _untouched(setup: Setup) -> Iterator[Row]:
    """Where a patch must not act nothing differs, bit by bit."""
    place, shape = setup.place, SHAPES["flux"]
    methods = cases.methods(place)[: 2 if place.small else None]
    everywhere = cases.mixed(shape, 1.0, **cases.THREE_STAGES)
    still = {f"at native size: {method}": [("RopePatchExtrapolate", {"method": method})] for method in methods}
    still["at native size: SEGA"] = [cases.SEGA]
    acting = {
        "strength 0: style": [cases.style(shape, strength=0.0)],
        "strength 0: SEGA": [("RopePatchSEGA", {"strength": 0.0, "extrapolation": "keep"})],
        "region over everything": [everywhere],
        "region over everything, bands": [everywhere, cases.BANDS],
        "drawing with the training patch": [cases.TRAINING],
    }

    @cache
    def plain_of(native: int) -> Tensor:
        made = setup.made("flux", place.device, native=native)
        return sample(made, made.model, shape)

    def same(links: Any, native: int) -> dict[str, Any]:
        made = setup.made("flux", place.device, native=native)
        found, plain = sample(made, chained(place, made, links), shape), plain_of(native)
        return {"ok": torch.equal(found, plain), "apart": apart(found, plain)}

    def bypassed(links: Any) -> dict[str, Any]:
        made = setup.made("flux", place.device)
        before = sample(made, made.model, shape)
        during = sample(made, chained(place, made, links), shape)
        after = sample(made, made.model, shape)
        return {
            "ok": torch.equal(before, after) and not torch.equal(during, before),
            "apart": apart(after, before),
            "acts_by": apart(during, before),
        }

    for name, links in still.items():
        yield f"bits, {name}", partial(same, links, LARGE_NATIVE)
    for name, links in acting.items():
        yield f"bits, {name}", partial(same, links, NATIVE)
    for name, links in cases.few(place, cases.single(shape, cases.THREE_STAGES)).items():
        yield f"bits, after a bypass: {name}", partial(bypassed, links)


def _precisions(setup: Setup) -> Iterator[Row]:
    """How far a patched run is from its float32 one, and the plain run from its own, on a schedule that every type can hold."""
    place, shape = setup.place, SHAPES["flux"]
    schedule = torch.tensor([1.0, 0.768, 0.512, 0.256, 0.0])  # a thousand times these, as models do, is exact in bf16
    kinds = {
        "float32": (torch.float32, None),
        "bf16": (torch.bfloat16, None),
        "fp16": (torch.float16, None),
        "fp8": (torch.float8_e4m3fn, torch.bfloat16),
    }

    @cache
    def run(kind: str, name: str) -> Tensor:
        dtype, computes = kinds[kind]
        made = setup.made("flux", place.device, dtype, computes=computes)
        return sample(made, chained(place, made, chains.get(name, [])), shape, sigmas=schedule)

    def measured(kind: str, name: str) -> dict[str, Any]:
        low = run(kind, name)
        far, plain = apart(low, run("float32", name)), apart(run(kind, "plain"), run("float32", "plain"))
        return {"ok": bool(torch.isfinite(low).all()) and far <= 3 * plain, "apart": far, "plain_apart": plain, "ratio": far / plain}

    chains = cases.few(place, cases.single(SHAPES["flux"], cases.THREE_STAGES))
    for kind in list(kinds)[1:]:
        for name in chains:
            yield f"{kind}: {name}", partial(measured, kind, name)


def _kernels(setup: Setup) -> Iterator[Row]:
    """Each of torch's attention kernels, in bf16 on a GPU, against the plain run's distance between it and the usual choice."""
    from torch.nn.attention import SDPBackend

    place = setup.place
    dtype = torch.bfloat16 if place.cuda else torch.float32

    def measured(kernel: Any, links: Any) -> dict[str, Any]:
        usual, usual_plain = setup.patched("flux", links, place.device, dtype), setup.plain("flux", place.device, dtype)
        made = setup.made("flux", place.device, dtype)
        try:
            with only(kernel):
                found = sample(made, chained(place, made, links), SHAPES["flux"])
                plain = sample(made, made.model, SHAPES["flux"])
        except RuntimeError as error:
            if "No available kernel" in str(error) or "No viable backend" in str(error):
                return {"skipped": f"torch has no such kernel on this device: {error}"[:200]}
            raise
        far, plain_far = apart(found, usual), apart(plain, usual_plain)
        return {
            "ok": bool(torch.isfinite(found).all()) and far <= max(3 * plain_far, 1e-2 if place.cuda else NEAR),
            "apart": far,
            "plain_apart": plain_far,
        }

    backends = {"math": SDPBackend.MATH, "flash": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}
    chains = cases.few(place, cases.single(SHAPES["flux"], cases.THREE_STAGES))
    for kernel, backend in backends.items():
        for name, links in chains.items():
            yield f"{kernel} attention: {name}", partial(measured, backend, links)


class only(ExitStack):  # noqa: N801 (a `with`)
    """Attention by this kernel alone; newer cores choose with a list of their own."""

    def __init__(self, kernel: Any) -> None:
        super().__init__()
        import comfy.ops
        from torch.nn.attention import sdpa_kernel

        listed = getattr(comfy.ops, "SDPA_BACKEND_PRIORITY", None)
        if listed is not None:
            self.callback(listed.__setitem__, slice(None), list(listed))
            listed[:] = [kernel]
        self.enter_context(sdpa_kernel([kernel]))


def _compiled(setup: Setup) -> Iterator[Row]:
    """One graph for each length of sequence, none more in a second run, the same picture."""
    place = setup.place
    kind = "eager" if place.small else "inductor"

    def measured(links: Any, most: int) -> dict[str, Any]:
        from comfy_api.torch_helpers import set_torch_compile_wrapper

        graphs = []

        def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
            graphs.append(graph)
            if kind == "eager":
                return graph.forward
            from torch._inductor.compile_fx import compile_fx

            return compile_fx(graph, inputs)

        made = setup.made("flux", place.device)
        model = chained(place, made, links)
        expected = sample(made, model, SHAPES["flux"])
        compiled = model.clone()
        torch._dynamo.reset()
        set_torch_compile_wrapper(model=compiled, backend=backend, keys=["diffusion_model"], fullgraph=True)
        counts, far = [], 0.0
        try:
            for _ in range(2):
                far = max(far, apart(sample(made, compiled, SHAPES["flux"]), expected))
                counts.append(len(graphs))
        finally:
            torch._dynamo.reset()
        ok = counts[0] <= most and counts[1] == counts[0] and far <= FAR
        return {"ok": ok, "graphs": counts[0], "more_in_a_second_run": counts[1] - counts[0], "apart": far, "backend": kind}

    chains = {"plain": [], **cases.single(SHAPES["flux"], cases.EVERY_STEP)}
    for name in ("mixed 25 %, bands",) if place.small else ("plain", *cases.FEW):  # half a minute each with inductor
        yield f"compiled, {kind}: {name}", partial(measured, chains[name], GRAPHS.get(name, 1))
