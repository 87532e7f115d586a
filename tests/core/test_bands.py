"""The overlap of both resolutions: the step's denoised content in the other resolution, and every token's own noise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rope_core.mixed.bands import Bands, averaged
from rope_core.mixed.carrier import Carrier
from rope_core.mixed.regions import TokenLayout
from rope_core.mixed.strip import Strip, interpolated

SIGMAS = (1.0, 0.9, 0.7, 0.4)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def strip_of(ratio: int, frames: int = 1) -> Strip:
    region = torch.zeros(frames, 6, 6, dtype=torch.bool)
    region[:, 1:4, 2:5] = True
    return Strip(TokenLayout(region, ratio, outer=1, inner=1), 2, torch.device("cpu"))


class Run:
    """A flow sampler over answers that are given: coarse ones first, then mixed ones. The content of every step is known by hand."""

    def __init__(self, ratio: int = 2, prompts: int = 1, video: bool = False, images: int = 2, guidance: float = 3.0) -> None:
        self.ratio, self.prompts, self.guidance = ratio, prompts, guidance
        self.strip = strip_of(ratio, 2 if video else 1)
        self.shape = (images, 3, *([2] if video else []), 12 * ratio, 12 * ratio)
        self.carrier = Carrier(ratio, 2, bands=Bands(ratio))
        self.noise = noise(*self.shape)
        self.x = self.noise.clone()
        self.content = torch.zeros(self.shape)

    @property
    def region(self) -> Tensor:
        return self.strip.region_high if len(self.shape) == 5 else self.strip.region_high[0]

    def step(self, number: int, fresh: float = 0.0) -> None:
        sigma, after = SIGMAS[number], SIGMAS[number + 1]
        self.carrier.begin(self.x, lambda: sigma)
        low = noise(self.shape[0] * self.prompts, *self.shape[1:-2], 12, 12, seed=10 + number)
        sharp = noise(self.shape[0] * self.prompts, *self.shape[1:], seed=20 + number)
        one = slice(0, self.shape[0])
        if number == 0:
            answers = self.carrier.after_coarse(low, (12 * self.ratio,) * 2, lambda: sigma, one)
            written = interpolated(low, self.ratio)
        else:
            held = torch.where(self.region, sharp, interpolated(low, self.ratio))
            answers = self.carrier.after_mixed(self.strip, self.strip.gather(held), (12 * self.ratio,) * 2, lambda: sigma, one)
            inside = torch.where(self.region[..., :: self.ratio, :: self.ratio], sharp[..., :: self.ratio, :: self.ratio], low)
            written = torch.where(self.region, sharp, interpolated(inside, self.ratio))
        torch.testing.assert_close(answers, written)
        parts = written.chunk(self.prompts)
        self.content = parts[0] if self.prompts == 1 else parts[1] + self.guidance * (parts[0] - parts[1])
        self.x = after / sigma * self.x + (1 - after / sigma) * self.content
        self.x = self.x + fresh * after * noise(*self.shape, seed=30 + number)

    def read(self, number: int) -> tuple[Tensor, Tensor]:
        """(what high-resolution tokens read, what low-resolution ones within the region read)."""
        self.carrier.begin(self.x, lambda: SIGMAS[number])
        x = self.x.repeat(self.prompts, *[1] * (len(self.shape) - 1))
        high, low = self.carrier.for_strip(x, self.strip, lambda: SIGMAS[number])
        assert high is not None
        assert low is not None
        return high, low


def mean(latent: Tensor, ratio: int) -> Tensor:
    """By hand."""
    rows = sum(latent[..., shift::ratio, :] for shift in range(ratio)) / ratio
    return sum(rows[..., shift::ratio] for shift in range(ratio)) / ratio


@pytest.mark.parametrize(("ratio", "prompts", "video"), [(2, 1, False), (3, 2, False), (4, 1, False), (2, 2, True)])
def test_bands_hold_the_last_steps_content_and_the_noise_that_the_run_began_with(ratio, prompts, video):
    run = Run(ratio, prompts, video)
    for number in range(3):
        run.step(number)
        sigma = SIGMAS[number + 1]
        high, low = run.read(number + 1)
        assert torch.equal(high[: run.shape[0]][..., run.region], run.x[..., run.region])
        outside = (1 - sigma) * run.content + sigma * run.noise
        torch.testing.assert_close(high[-run.shape[0] :][..., ~run.region], outside[..., ~run.region], rtol=0, atol=2e-5)
        inside = (1 - sigma) * mean(run.content, ratio) + sigma * run.noise[..., ::ratio, ::ratio]
        torch.testing.assert_close(low[-run.shape[0] :], inside, rtol=0, atol=2e-5)


def test_what_the_carrier_held_was_behind_by_what_earlier_steps_had_written():
    """The same step without bands: the share of every earlier answer that is left stands in the carrier."""
    run = Run()
    run.step(0)
    run.step(1)
    content = (run.x - SIGMAS[2] * run.noise) / (1 - SIGMAS[2])
    assert (content - run.content)[..., ~run.region].square().mean() > 0.05
    high, _ = run.read(2)
    read = (high - SIGMAS[2] * run.noise) / (1 - SIGMAS[2])
    torch.testing.assert_close(read[..., ~run.region], run.content[..., ~run.region], rtol=0, atol=1e-4)


@pytest.mark.parametrize("fresh", [0.5, 1.0])
def test_noise_of_a_sampler_stays_as_it_is_and_content_is_averaged(fresh):
    run = Run()
    run.step(0, fresh)
    run.step(1, fresh)
    high, low = run.read(2)
    torch.testing.assert_close(high, run.x, rtol=0, atol=1e-6)
    more = (1 - SIGMAS[2]) * (mean(run.content, 2) - run.content[..., ::2, ::2])
    torch.testing.assert_close(low, run.x[..., ::2, ::2] + more, rtol=0, atol=1e-5)


def test_noise_levels_are_the_steps_own():
    """A mean of four noisy pixels would hold half of the noise."""
    run = Run(images=64)
    run.step(0)
    _, low = run.read(1)
    rest = low - (1 - SIGMAS[1]) * mean(run.content, 2)
    assert float(rest.std()) == pytest.approx(SIGMAS[1], rel=0.02)


def test_a_first_step_reads_the_carrier():
    run = Run()
    run.carrier.begin(run.x, lambda: 1.0)
    assert run.carrier.for_strip(run.x, run.strip, lambda: 1.0) == (None, None)


def test_without_bands_nothing_is_kept_and_nothing_read():
    carrier = Carrier(2, 2)
    x = noise(1, 3, 24, 24)
    carrier.begin(x, lambda: 1.0)
    assert carrier.for_strip(x, strip_of(2), lambda: 1.0) == (None, None)


@pytest.mark.parametrize("size", [(8, 8), (7, 11), (9, 8)])
def test_means_at_the_edges_are_of_what_is_there(size):
    latent = noise(2, 3, *size)
    found = averaged(latent, 2)
    assert found.shape[-2:] == tuple(-(-n // 2) for n in size)
    for row in range(found.shape[-2]):
        for column in range(found.shape[-1]):
            expected = latent[..., 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean((-2, -1))
            torch.testing.assert_close(found[..., row, column], expected)
    clip = latent.unsqueeze(2).expand(-1, -1, 3, -1, -1)
    torch.testing.assert_close(averaged(clip, 2), found.unsqueeze(2).expand(-1, -1, 3, -1, -1))


def test_a_photographs_band_is_nearer_to_the_photograph_made_small():
    """The measure of the means: a smooth picture with grain, against the same picture reduced."""
    picture = functional.interpolate(noise(1, 3, 12, 12), size=(48, 48), mode="bicubic") + 0.3 * noise(1, 3, 48, 48, seed=1)
    reduced = functional.interpolate(picture, scale_factor=0.5, mode="bicubic", antialias=True)

    def error(found: Tensor) -> float:
        return float((found - reduced).square().mean())

    assert error(averaged(picture, 2)) < 0.5 * error(picture[..., ::2, ::2])


def test_what_is_left_beside_the_content_where_noise_is_added_to_it():
    """Latents of content + sigma noise, whose sigmas begin far above 1: each token keeps its own noise, all of the content goes."""
    strip, sigma = strip_of(2), 5.0
    shape = (1, 3, 24, 24)
    carrier = Carrier(2, 2, bands=Bands(2, adds_noise=True), adds_noise=True)
    carrier.begin(80.0 * noise(*shape), lambda: 80.0)
    low = noise(1, 3, 12, 12, seed=1)
    content = carrier.after_coarse(low, (24, 24), lambda: 80.0, slice(0, 1))
    own = noise(*shape, seed=2)
    x = content + sigma * own
    carrier.begin(x, lambda: sigma)
    high, coarse = carrier.for_strip(x, strip, lambda: sigma)
    assert high is not None
    assert coarse is not None
    torch.testing.assert_close(high, x)
    torch.testing.assert_close(coarse, sigma * own[..., ::2, ::2] + mean(content, 2))
