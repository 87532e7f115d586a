"""Carriers within carriers: what is read at every size of a picture that grows in steps."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rope_core import CoarseToFine, RopeWorksError
from rope_core.mixed.coarse_to_fine import CoarseRun, Level
from rope_core.mixed.patches import COARSE_UNTIL
from rope_core.mixed.strip import interpolated

FOURTH = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
LEVELS = (Level(4, 0.7), Level(2, 0.4))
SIGMAS = (1.0, 0.8, 0.6, 0.5, 0.3, 0.2, 0.0)


def nearest(low: Tensor, ratio: int) -> Tensor:
    return functional.interpolate(low, scale_factor=ratio)


def test_what_is_read_is_what_the_upsampler_would_have_written_at_every_size() -> None:
    """One picture throughout, x = (1 - sigma) picture + sigma noise; at every size it is the fourth of it, enlarged."""
    run, x = CoarseRun(LEVELS, SIGMAS, 2, nearest), NOISE
    for sigma, after in pairwise(SIGMAS):
        depth = run.depth(sigma)
        assert (depth, run.ratio(depth)) == {1.0: (2, 4), 0.8: (2, 4), 0.6: (1, 2), 0.5: (1, 2)}.get(sigma, (0, 1))
        ratio = run.ratio(depth)
        answer = nearest(FOURTH, 4 // ratio)
        read = run.cascade.read(x, depth, lambda: sigma)  # noqa: B023
        torch.testing.assert_close(read, (1 - sigma) * answer + sigma * NOISE[..., ::ratio, ::ratio])
        denoised = run.cascade.answered(answer, (16, 16), depth, lambda: sigma, slice(None)) if depth else answer  # noqa: B023
        x = after / sigma * x + (1 - after / sigma) * denoised
    torch.testing.assert_close(x, nearest(FOURTH, 4))


def test_without_an_upsampler_the_samplers_own_latent_is_read() -> None:
    run = CoarseRun(LEVELS, SIGMAS, 2, None)
    assert run.cascade.read(NOISE, 0, lambda: 0.2) is NOISE
    assert torch.equal(run.cascade.read(NOISE, 2, lambda: 1.0), NOISE[..., ::4, ::4])
    full = run.cascade.answered(FOURTH, (15, 14), 2, lambda: 1.0, slice(None))
    torch.testing.assert_close(full, interpolated(interpolated(FOURTH, 2), 2)[..., :15, :14])


def test_a_run_goes_on_with_what_another_has_left() -> None:
    """One schedule over two samplers reads what one sampler reads, wherever it is cut."""

    def drawn(cuts: tuple[int, ...]) -> list[Tensor]:
        x, before, found = NOISE, None, []
        for begin, end in pairwise((0, *cuts, len(SIGMAS) - 1)):
            sigmas = SIGMAS[begin : end + 1]
            run = CoarseRun(LEVELS, sigmas, 2, nearest, before)
            for sigma, after in pairwise(sigmas):
                depth = run.depth(sigma)
                found.append(run.cascade.read(x, depth, lambda: sigma))  # noqa: B023
                answer = nearest(FOURTH, 4 // run.ratio(depth))
                x0 = run.cascade.answered(answer, (16, 16), depth, lambda: sigma, slice(None)) if depth else answer  # noqa: B023
                x = after / sigma * x + (1 - after / sigma) * x0
            before = run.left()
        return found

    whole = drawn(())
    for cut in range(1, len(SIGMAS) - 1):
        torch.testing.assert_close(drawn((cut,)), whole)
    torch.testing.assert_close(drawn((2, 4)), whole)


def test_levels_without_a_step_are_passed_over() -> None:
    run = CoarseRun(LEVELS, (1.0, 0.8, 0.3, 0.0), 2, nearest)
    assert [carrier.ratio for carrier in run.cascade.carriers] == [4]
    assert CoarseRun(LEVELS, (0.3, 0.2, 0.0), 2, nearest).levels == ()
    assert CoarseRun(LEVELS, (), 2, nearest).levels == LEVELS


def test_the_switch_is_a_share_of_the_schedule() -> None:
    def straight(percent: float) -> float:
        return 1.0 - percent

    assert CoarseToFine().levels(straight) == (Level(2, straight(COARSE_UNTIL)),)
    assert CoarseToFine(4, 0.5, "by halves").levels(straight) == (Level(4, 0.75), Level(2, 0.5))
    assert CoarseToFine().levels(None)[0].until == pytest.approx(0.8)
    halves = CoarseToFine(4, stages="by halves").levels(None)
    assert [level.until for level in halves] == pytest.approx([0.9186, 0.8], abs=1e-3)  # Flux's own shift at half of 44 %


def test_the_saving_sums_up_every_step() -> None:
    """Tokens alone, where a width beyond all measure makes products of no account: 2 of 6 steps at 1/16, 2 at 1/4."""
    run = CoarseRun(LEVELS, SIGMAS, 2, None)
    assert run.saving((1, 32, 32), 10**9, 0) == pytest.approx(6 / (2 / 16 + 2 / 4 + 2), rel=1e-5)
    assert "of 6 steps 2 at 1/4, 2 at 1/2, 2 at full size" in run.describe((1, 32, 32), 64, 0)


@pytest.mark.parametrize("values", [(5,), (2, 1.5), (2, float("nan")), (3, 0.5, "by halves"), (2, 0.5, "slowly")])
def test_malformed_values_are_refused(values: tuple[object, ...]) -> None:
    with pytest.raises(RopeWorksError):
        CoarseToFine(*values)  # type: ignore[arg-type]
