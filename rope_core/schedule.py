"""How far a step stands in a model's own schedule, told by its sigma, whichever part of the schedule a sampler is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence

PercentToSigma = Callable[[float], float]  # falls from 0 to 1; hosts bend it by the model's shift

_HALVINGS = 40
# Hosts make schedules of 1000 levels, so that a share of the schedule is known to about as much.
_FINEST = 2e-3


def share_of(sigma: float, percent_to_sigma: PercentToSigma) -> float:
    """The share of the schedule that lies before `sigma`, 0 to 1: the inverse of `percent_to_sigma`."""
    below, above = 1.0, 0.0
    for _ in range(_HALVINGS):
        middle = (below + above) / 2
        if float(percent_to_sigma(middle)) > sigma:
            above = middle
        else:
            below = middle
    return below


def progress_of_levels(sigmas: Sequence[float], percent_to_sigma: PercentToSigma) -> list[float]:
    """Per sigma of a run, largest first: 0 at the schedule's first step, 1 at its last.

    A run over the whole schedule counts its own steps. A part of it stands where its sigmas say: at step i of N where they are even in
    the model's time, as most schedulers make them, else at the share of the schedule.
    """
    levels = sorted(sigmas, reverse=True)
    shares = [share_of(level, percent_to_sigma) for level in levels]
    steps, ends = len(levels) - 1, levels[-1] <= 0.0
    if steps < 1:
        return [min(share, 1.0) for share in shares]
    if ends and shares[0] <= _FINEST / 2:
        return [min(number / max(steps - 1, 1), 1.0) for number in range(steps + 1)]
    places, count = _even_places(shares)
    if places:
        return [min(place / (count - 1), 1.0) for place in places]
    # Where it ends, its last step is the schedule's; a part from the middle cannot tell how long the last step will be.
    last = shares[-2] if ends else 1.0
    return [min(share / last, 1.0) if last else 0.0 for share in shares]


def _even_places(shares: Sequence[float]) -> tuple[list[int], int]:
    """(steps of the whole schedule before each share, steps of the whole) where the shares are that of neighbouring even steps."""
    width = (shares[-1] - shares[0]) / (len(shares) - 1)
    count = round(1 / width) if width > _FINEST else 0
    places = [round(share * count) for share in shares]
    neighbours = places == list(range(places[0], places[0] + len(places)))
    off = max(abs(share - place / count) for share, place in zip(shares, places, strict=True)) if count else 1.0
    return (places, count) if count > 1 and neighbours and off <= _FINEST else ([], 0)
