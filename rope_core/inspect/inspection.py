"""What patches do to a model, in numbers and in words: wavelengths, relative phase, token share, and a report. For the CPU."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace

import torch
from torch import Tensor

from ..mixed.regions import TokenLayout
from ..stack import HEIGHT, TIME, WIDTH, AxisSpan, Call, Patch, Stack
from .record import RecordedRun

MOMENTS = (0.0, 0.5, 1.0)  # shares of the schedule at which patches are looked at
TRAINED, PATCHED = "as trained", "patched"
RESTS = "nothing to do"  # how a patch says so in its line
UNPATCHED = "nothing: this model is unpatched"


def wavelengths(frequencies: Tensor) -> Tensor:
    """Tokens per turn of every pair, from radians per token."""
    return 2 * math.pi / frequencies


def phase_curve(frequencies: Tensor, distances: Tensor) -> Tensor:
    """kappa(delta), the mean over (pairs,) of cos(frequency * delta), at (n,) distances; (n,) float64."""
    return (distances.double()[:, None] * frequencies.double()).cos().mean(-1)


@dataclass(frozen=True)
class InspectedAxis:
    """One axis, or two of which the same holds. roles: their names. trained: (pairs,) radians per token.

    patched: the same as patches make it, by when in the schedule; empty where they change nothing.
    positions: (length,), where patches put the tokens; None where they stand one apart.
    """

    roles: tuple[str, ...]
    span: AxisSpan
    trained: Tensor
    patched: Mapping[str, Tensor]
    positions: Tensor | None = None

    @property
    def title(self) -> str:
        return " and ".join(self.roles)

    @property
    def curves(self) -> dict[str, Tensor]:
        return {TRAINED: self.trained, **self.patched}

    @property
    def phases(self) -> dict[str, Tensor]:
        """kappa between the first token and every token, (length,) each, by curve."""
        plain = torch.arange(self.span.length, dtype=torch.float64)
        found = {name: phase_curve(values, plain) for name, values in self.curves.items()}
        if self.positions is not None:
            patched = self.patched or {PATCHED: self.trained}
            found.update((name, phase_curve(values, self.positions - self.positions[0])) for name, values in patched.items())
        return found


@dataclass(frozen=True)
class Inspection:
    """One patched model at one size. call: sigma and token map are placeholders.

    given_size: whether the size is a latent's; else it is the native one. hidden: channels per token. run: the last one, on the CPU.
    layout: the tokens of a mixed step, example: whether its region is yet to be chosen. others: what other packs did, a line each.
    """

    stack: Stack
    call: Call
    given_size: bool
    hidden: int
    run: RecordedRun | None = None
    layout: TokenLayout | None = None
    example: bool = False
    others: tuple[str, ...] = ()

    def axes(self) -> list[InspectedAxis]:
        """The axes along which the picture has more than one token; height and width together where they are alike."""
        percents = sorted({*MOMENTS, *((p.window.start + p.window.end) / 2 for p in self.stack.patches)})
        found = {percent: self.stack.frequencies(at_percent(self.call, percent)) for percent in percents}
        positions = [None if values is None else values[0] for values in self.stack.positions(self.call)]
        axes: list[InspectedAxis] = []
        for number, span in enumerate(self.call.axes):
            if span.role not in (TIME, HEIGHT, WIDTH) or span.length < 2:
                continue
            trained = self.call.base(number) * span.step
            curves = {percent: _per_token(values[number], span.step) for percent, values in found.items()}
            axis = InspectedAxis((span.role,), span, trained, distinct_curves(trained, curves), positions[number])
            if axes and _alike(axes[-1], axis):
                axes[-1] = replace(axes[-1], roles=(*axes[-1].roles, span.role))
            else:
                axes.append(axis)
        return axes

    @property
    def scales_magnitudes(self) -> bool:
        """Whether any patch here does, at whatever size and step."""
        return any(patch.scales_magnitudes for patch in self.stack.patches)

    def title(self) -> str:
        return f"{self.call.family}, {self.call.size()} tokens"

    def patch_lines(self) -> list[str]:
        """One line per patch, in order of application."""
        if not self.stack.patches:
            return [UNPATCHED]
        return [f"{line}{settings(patch, line)}" for patch, line in zip(self.stack.patches, self.stack.describe(self.call), strict=True)]

    def verdict(self) -> str:
        """One line: what acts at this size, and how much; "SEGA acts: 2.0×, factors 1.00 to 1.18"."""
        if not self.stack.patches:
            return "Nothing acts: this model is unpatched"
        lines = list(zip(self.stack.patches, self.stack.describe(self.call), strict=True))
        acting = [line.split(" on ")[0] if " on " in line else patch.node for patch, line in lines if RESTS not in line]
        if not acting:
            return f"Nothing acts: {'; '.join(line for _, line in lines)}"
        scale = max((span.scale for span in self.call.axes if span.native), default=1.0)
        found = []
        factors = [] if self.run is None else [m for m in self.run.magnitudes if m is not None]
        if factors:
            found.append(f"factors {min(float(m.min()) for m in factors):.2f} to {max(float(m.max()) for m in factors):.2f}")
        elif self.scales_magnitudes:
            found.append("factors 1 throughout" if self.run is not None else "factors known after a run")
        if self.layout is not None and not self.example:
            found.append(f"{self.layout.token_share:.0%} of the tokens")
        if scale > 1.0 or not found:
            found.insert(0, f"{scale:.1f}×")
        return f"{', '.join(acting)} {'acts' if len(acting) == 1 else 'act'}: {', '.join(found)}"

    def report(self, text: int) -> str:
        """All there is to say, a line each, the verdict first. text: text tokens to reckon the speed-up with."""
        size = "size of the latent" if self.given_size else "native size: connect a latent for another"
        lines = [self.verdict(), f"model: {self.title()} ({size})"]
        for span in self.call.axes:
            if span.role in (TIME, HEIGHT, WIDTH):
                lines.append(f"  {_axis_line(span)}")
        lines.append("patches, in order:")
        lines += [f"  {number}. {line}" if self.stack.patches else f"  {line}" for number, line in enumerate(self.patch_lines(), 1)]
        axes = self.axes()
        lines += [f"wavelengths along {axis.title}: {_range(axis)}" for axis in axes]
        lines += [f"positions along {axis.title}: {_places(axis.positions)}" for axis in axes if axis.positions is not None]
        if self.layout is not None:
            lines.append(f"token layout{' (example, chosen while sampling)' * self.example}: {layout_line(self.layout, self.hidden, text)}")
        lines += [f"magnitudes: {line}" for line in self._magnitude_lines()]
        lines += [f"other nodes: {line}" for line in self.others]
        return "\n".join(lines)

    def _magnitude_lines(self) -> list[str]:
        if self.run is None:
            return ["no run yet; run once with this model, then inspect with the sampler's latent connected"] * self.scales_magnitudes
        head = f"last run of {len(self.run.sigmas)} steps at {replace(self.call, axes=self.run.axes).size()} tokens"
        scaled = [(a.role, m) for a, m in zip(self.run.axes, self.run.magnitudes, strict=True) if m is not None]
        if not scaled:
            return [f"{head}: 1 throughout"]
        return [f"{head}, {role}: {float(m.min()):.3f} to {float(m.max()):.3f}" for role, m in scaled]


def at_percent(call: Call, percent: float) -> Call:
    """The same call at a share of the schedule, 0 = first step."""
    convert = call.percent_to_sigma or (lambda share: 1.0 - share)
    sigma = min(max(float(convert(percent)), 0.0), 1.0)
    return replace(call, sigma=torch.tensor(sigma, dtype=torch.float64))


def distinct_curves(trained: Tensor, curves: Mapping[float, Tensor | None]) -> dict[str, Tensor]:
    """(pairs,) by share of the schedule -> the different ones by name, without those that equal `trained`."""
    groups: list[tuple[list[float], Tensor]] = []
    for percent, value in curves.items():
        found = trained if value is None else value
        same = next((group for group in groups if torch.allclose(group[1], found, rtol=1e-9, atol=0.0)), None)
        if same is None:
            groups.append(([percent], found))
        else:
            same[0].append(percent)
    always = len(groups) == 1
    return {
        PATCHED if always else f"{PATCHED}, at {', '.join(f'{p:.0%}' for p in percents)} of the schedule": value
        for percents, value in groups
        if not torch.allclose(value, trained, rtol=1e-9, atol=0.0)
    }


def settings(patch: Patch, said: str = "") -> str:
    """Of a patch's settings those that differ from the default and are not `said` yet: " [name value, ...]", or nothing."""
    found = []
    for field in fields(patch):  # type: ignore[arg-type]  # every patch is a dataclass
        value = getattr(patch, field.name)
        if isinstance(value, Tensor):
            found.append(f"{field.name} {'×'.join(map(str, value.shape))}")
        elif (isinstance(value, (int, float, str)) or is_dataclass(value)) and value != field.default:
            found.append(f"{field.name} {value:g}" if isinstance(value, float) else f"{field.name} {value}")
    new = [words for words in found if words not in said]
    return f" [{', '.join(new)}]" if new else ""


def layout_line(layout: TokenLayout, hidden: int, text: int) -> str:
    speed = f"a mixed step about {layout.speedup(hidden, text):.1f}x faster (predicted)"
    return f"{layout.area:.0%} of the area{layout.margin_words}, {layout.token_share:.0%} of the tokens, {speed}"


def _alike(one: InspectedAxis, other: InspectedAxis) -> bool:
    spans = all(getattr(one.span, name) == getattr(other.span, name) for name in ("pairs", "base", "step", "length", "native", "spatial"))
    if not spans or one.curves.keys() != other.curves.keys() or (one.positions is None) != (other.positions is None):
        return False
    if one.positions is not None and other.positions is not None and not torch.equal(one.positions, other.positions):
        return False
    return all(torch.equal(a, b) for a, b in zip(one.curves.values(), other.curves.values(), strict=True))


def _axis_line(span: AxisSpan) -> str:
    native = f"native {span.native:.4g} (s = {span.scale:.2f})" if span.native else "no native length known"
    return f"{span.role}: {span.length} tokens, {native}, {span.pairs} pairs, theta {span.base:g}"


def _range(axis: InspectedAxis) -> str:
    def ends(frequencies: Tensor) -> str:
        waves: Sequence[float] = [float(w) for w in wavelengths(frequencies)]
        return f"{waves[0]:.4g} to {waves[-1]:.4g} tokens"

    return "; ".join(f"{name} {ends(values)}" for name, values in axis.curves.items())


def _per_token(frequencies: Tensor | None, step: float) -> Tensor | None:
    return None if frequencies is None else frequencies * step


def _places(positions: Tensor) -> str:
    low, high = float(positions[0]), float(positions[-1])
    return f"{low:.4g} to {high:.4g}, {(high - low) / (len(positions) - 1):.3g} apart"
