"""Rotation tables against complex arithmetic and float64 trigonometry."""

import comfy_kitchen
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rope_core.pairing import HALVES
from rope_core.table import difference, rotate_keys, rotations, token_table, turn, write_grid

WIDTHS = (16, 56, 56)  # Flux.1: channels of the index, height and width axis
NONE = [None] * 3


def plain(channels: int) -> np.ndarray:
    return np.array([1e4 ** (-2 * d / channels) for d in range(channels // 2)])


FREQUENCIES = [torch.from_numpy(plain(w)) for w in WIDTHS]


def grid_ids(frames: int, rows: int, columns: int) -> torch.Tensor:
    return torch.tensor([[f, r, c] for f in range(frames) for r in range(rows) for c in range(columns)])


def angles(ids: torch.Tensor) -> np.ndarray:
    """(tokens, axes) -> (tokens, all pairs) float64."""
    return np.concatenate([ids[:, a : a + 1].double().numpy() * plain(w)[None] for a, w in enumerate(WIDTHS)], axis=-1)


def matrices(angle: np.ndarray, magnitude: np.ndarray | float = 1.0) -> np.ndarray:
    cos, sin = magnitude * np.cos(angle), magnitude * np.sin(angle)
    return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)


def random_magnitudes(batch: int, seed: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [0.5 + torch.rand(batch, w // 2, generator=generator, dtype=torch.float64) for w in WIDTHS]


def as_complex(x: torch.Tensor) -> torch.Tensor:
    return torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())


@pytest.mark.parametrize("with_magnitudes", [False, True])
def test_comfy_kitchen_rotates_query_and_key_pairs_as_complex_numbers(with_magnitudes):
    ids = grid_ids(2, 5, 7)
    magnitudes = random_magnitudes(1) if with_magnitudes else NONE
    table = token_table(ids, FREQUENCIES, magnitudes)
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 3, len(ids), 128, generator=generator) for _ in range(2))
    rotated = comfy_kitchen.apply_rope(q, k, table)
    factor = torch.cat(magnitudes, -1).numpy()[0] if with_magnitudes else 1.0
    phase = torch.from_numpy(factor * np.exp(1j * angles(ids)))
    for found, x in zip(rotated, (q, k), strict=True):
        torch.testing.assert_close(as_complex(found), as_complex(x) * phase, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [None, 1, 2])
@pytest.mark.parametrize("grid", [(1, 8, 8), (1, 6, 11), (3, 4, 5)])
def test_a_grid_is_written_bit_for_bit_as_its_tokens_would_be(grid, batch):
    magnitudes = random_magnitudes(batch) if batch else NONE
    ids = grid_ids(*grid)
    out = torch.full((batch or 1, len(ids), 64, 2, 2), torch.nan)
    write_grid(out, grid, [torch.arange(n) for n in grid], FREQUENCIES, magnitudes, (0, 1, 2))
    assert torch.equal(out.unsqueeze(1), token_table(ids, FREQUENCIES, magnitudes))


def test_a_grid_axis_may_sit_on_any_dimension_of_the_grid():
    grid = (1, 3, 4)
    swapped = torch.empty(1, 12, 64, 2, 2)
    positions = [torch.zeros(1), torch.arange(4), torch.arange(3)]
    write_grid(swapped, grid, positions, FREQUENCIES, NONE, (0, 2, 1))
    assert torch.equal(swapped.unsqueeze(1), token_table(grid_ids(*grid)[:, [0, 2, 1]], FREQUENCIES, NONE))


def test_the_table_is_within_one_float32_step_of_float64_trigonometry():
    positions = torch.arange(1025)
    ids = positions[:, None].expand(-1, 3)
    table = token_table(ids, FREQUENCIES, NONE)
    assert table.dtype == torch.float32
    assert table.shape == (1, 1, 1025, 64, 2, 2)
    expected = matrices(angles(ids))
    step = np.spacing(np.abs(expected).astype(np.float32)).astype(np.float64)
    error = np.abs(table[0, 0].double().numpy() - expected)
    assert (error <= step).all(), f"worst error is {(error / step).max():.2f} float32 steps"


@settings(max_examples=30, deadline=None)
@given(
    first=st.tuples(*[st.integers(0, 300)] * 3),
    second=st.tuples(*[st.integers(0, 300)] * 3),
    shift=st.tuples(*[st.integers(-300, 700)] * 3),
    seed=st.integers(0, 1000),
)
def test_logits_depend_on_the_distance_of_tokens_alone(first, second, shift, seed):
    ids = torch.tensor([first, second])
    q, k = torch.randn(2, 64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

    def logit(at: torch.Tensor) -> float:
        table = token_table(at, FREQUENCIES, NONE)[0, 0].double()
        return float(((table[0] @ q[..., None]) * (table[1] @ k[..., None])).sum())

    assert logit(ids + torch.tensor(shift)) == pytest.approx(logit(ids), abs=2e-5)


@pytest.mark.parametrize("batch", [None, 2])
def test_permuting_ids_permutes_the_rows_of_the_table(batch):
    magnitudes = random_magnitudes(batch) if batch else NONE
    ids = grid_ids(1, 6, 7)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(1))
    assert torch.equal(
        token_table(ids[order], FREQUENCIES, magnitudes),
        token_table(ids, FREQUENCIES, magnitudes)[:, :, order],
    )


def test_magnitudes_multiply_all_four_entries_of_their_pair():
    ids = grid_ids(1, 5, 6)
    magnitudes = random_magnitudes(3)
    table = token_table(ids, FREQUENCIES, magnitudes)
    assert table.shape == (3, 1, 30, 64, 2, 2)
    factors = torch.cat(magnitudes, -1).numpy()
    for row in range(3):
        np.testing.assert_allclose(table[row, 0].numpy(), matrices(angles(ids), factors[row][None]), rtol=1e-6, atol=1e-6)


def test_an_axis_without_magnitudes_stays_a_pure_rotation():
    ids = grid_ids(1, 5, 6)
    table = token_table(ids, FREQUENCIES, [None, random_magnitudes(2)[1], None])
    bare = token_table(ids, FREQUENCIES, NONE)
    for untouched in (slice(0, 8), slice(36, 64)):
        assert torch.equal(table[..., untouched, :, :], bare[..., untouched, :, :].expand(2, -1, -1, -1, -1, -1))
    assert not torch.equal(table[..., 8:36, :, :], bare[..., 8:36, :, :].expand(2, -1, -1, -1, -1, -1))


@pytest.mark.parametrize("magnitude_batch", [1, 2])
def test_a_batch_of_ids_gives_every_image_its_own_table(magnitude_batch):
    ids = torch.stack((grid_ids(1, 3, 4), grid_ids(1, 3, 4).flip(0) + 7))
    magnitudes = random_magnitudes(magnitude_batch)
    table = token_table(ids, FREQUENCIES, magnitudes)
    assert table.shape == (2, 1, 12, 64, 2, 2)
    factors = torch.cat(magnitudes, -1).expand(2, -1).numpy()
    for row in range(2):
        np.testing.assert_allclose(table[row, 0].numpy(), matrices(angles(ids[row]), factors[row][None]), rtol=1e-6, atol=1e-6)


def test_turning_a_table_adds_angles_and_multiplies_magnitudes():
    first, second = torch.tensor([3.0, 11.0, 40.0]), torch.tensor([0.25, -7.5, 2.0])
    frequency = FREQUENCIES[0]
    a, b = random_magnitudes(1, 1)[0], random_magnitudes(1, 2)[0]
    found = turn(rotations(first, frequency, a), rotations(second, frequency, b))
    angle = (first + second).double().numpy()[:, None] * plain(16)[None]
    np.testing.assert_allclose(found[0].numpy(), matrices(angle, (a * b).numpy()), rtol=1e-5, atol=1e-6)


def test_positions_may_be_fractions():
    table = token_table(torch.tensor([[0.0, 0.5, 12.25]]), FREQUENCIES, NONE)
    np.testing.assert_allclose(table[0, 0].numpy(), matrices(angles(torch.tensor([[0.0, 0.5, 12.25]]))), rtol=1e-6, atol=1e-7)


# ---- channels half a head apart


def test_keys_turn_half_a_head_apart():
    """A head of six channels by hand: 0 turns with 3, 1 with 4, 2 with 5."""
    keys, angle = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(1)), torch.tensor([[0.3, 1.1, -0.7]]).double()
    table = token_table(torch.arange(4)[:, None], [angle[0]], [None])
    found = rotate_keys(keys, table, HALVES)
    expected = torch.empty_like(keys)
    for token in range(4):
        for pair in range(3):
            cos, sin = np.cos(token * float(angle[0, pair])), np.sin(token * float(angle[0, pair]))
            a, b = keys[:, :, token, pair], keys[:, :, token, pair + 3]
            expected[:, :, token, pair] = a * cos - b * sin
            expected[:, :, token, pair + 3] = a * sin + b * cos
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, rotate_keys(keys, table), atol=0.1)


def test_keys_that_were_turned_half_a_head_apart_go_to_another_place():
    """What the core's own kernel turned to one place, turned on, is what it would have turned to the other."""
    keys = torch.randn(1, 2, 35, 128, generator=torch.Generator().manual_seed(2))
    here, there = (token_table(grid_ids(1, 5, 7) * scale, FREQUENCIES, NONE) for scale in (1.0, 0.5))
    turned = comfy_kitchen.apply_rope_split_half1(keys, here)
    on = rotate_keys(turned, difference(there, here), HALVES)
    torch.testing.assert_close(on, comfy_kitchen.apply_rope_split_half1(keys, there), rtol=1e-5, atol=1e-5)
