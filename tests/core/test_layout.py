"""Which token gets which rotation: text, image and reference tokens in a grid, behind masks, on foreign tables."""

import numpy as np
import pytest
import torch

from rope_core import Call, Plan
from rope_core.layout import GridLayout, MaskLayout, plan_table
from rope_core.stack import HEIGHT, INDEX, WIDTH, AxisSpan

WIDTHS = (2, 3, 3)  # pairs of the index, height and width axis
PAIRS = sum(WIDTHS)
BASE = 1e4
TEXT, GRID, REFERENCES = 3, (1, 4, 5), 6
IMAGE = 4 * 5
LAYOUT = GridLayout(GRID, TEXT)
NEW = {1: np.array([0.9, 0.05, 0.003]), 2: np.array([0.8, 0.04, 0.002])}  # frequencies of no rule


def plain(pairs: int) -> np.ndarray:
    return np.array([BASE ** (-d / pairs) for d in range(pairs)])


def call(rows: int = 4, columns: int = 5) -> Call:
    spans = zip((INDEX, HEIGHT, WIDTH), WIDTHS, (1, rows, columns), strict=True)
    axes = tuple(AxisSpan(role, pairs, BASE, length) for role, pairs, length in spans)
    return Call("Flux.1", axes, torch.tensor(0.5), 16.0, lambda: torch.zeros(1, 1, rows, columns))


def sequence(grid=GRID, text: int = TEXT, references: int = REFERENCES) -> torch.Tensor:
    """Ids of text at zero, an image and reference tokens with index 1; (1, tokens, 3) float32."""
    image = [[0, r, c] for _ in range(grid[0]) for r in range(grid[1]) for c in range(grid[2])]
    return torch.tensor([[[0, 0, 0]] * text + image + [[1, i, 2 * i] for i in range(references)]], dtype=torch.float32)


def magnitude(axis: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(10 * seed + axis)
    return 0.5 + torch.rand(batch, WIDTHS[axis], generator=generator, dtype=torch.float64)


def plan(frequencies=NEW, magnitudes=None, text=None) -> Plan:
    def row(values):
        return tuple((values or {}).get(axis) for axis in range(3))

    return Plan(tuple(None if f is None else torch.from_numpy(f) for f in row(frequencies)), row(magnitudes), row(text))


def expected_table(ids, frequencies, magnitudes=None, turned=0.0) -> np.ndarray:
    """(tokens, axes) -> (tokens, pairs, 2, 2) float64, by hand."""
    angles, factors = [], []
    for axis, pairs in enumerate(WIDTHS):
        theta = frequencies.get(axis, plain(pairs))
        angles.append(ids[:, axis : axis + 1].double().numpy() * theta[None])
        factors.append((magnitudes or {}).get(axis, torch.ones(1, pairs))[:1].double().numpy().repeat(len(ids), 0))
    angle, factor = np.concatenate(angles, -1) + turned, np.concatenate(factors, -1)
    cos, sin = factor * np.cos(angle), factor * np.sin(angle)
    return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)


def hosts_own(ids: torch.Tensor, turned: float = 0.0, scaled: float = 1.0):
    """What the host would compute without us; random in the last bits so that copies can be told from recomputation."""
    table = torch.from_numpy(np.stack([expected_table(row, {}, turned=turned) for row in ids])).float()[:, None] * scaled
    noise = torch.rand(table.shape, generator=torch.Generator().manual_seed(9)) * 1e-6
    return lambda where: (table + noise)[:, :, where]


def forbidden(where: slice) -> torch.Tensor:
    raise AssertionError("the host's own table was asked for although nothing needs it")


def near(found: torch.Tensor, expected: np.ndarray, atol: float = 3e-6) -> None:
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=atol)


def image_part(table: torch.Tensor) -> torch.Tensor:
    return table[:, :, TEXT : TEXT + IMAGE]


def test_text_and_image_follow_the_plan_and_references_are_the_hosts_own_bit_for_bit():
    ids = sequence()
    base = hosts_own(ids)
    m = {1: magnitude(1), 2: magnitude(2)}
    table = plan_table(ids, plan(magnitudes=m, text=m), call(), LAYOUT, base, base_is_plain=True)
    assert table.shape == (1, 1, TEXT + IMAGE + REFERENCES, PAIRS, 2, 2)
    near(table[0, 0, : TEXT + IMAGE], expected_table(ids[0, : TEXT + IMAGE], NEW, m))
    assert torch.equal(table[:, :, TEXT + IMAGE :], base(slice(TEXT + IMAGE, None)))


def test_without_references_the_hosts_table_is_never_computed():
    ids = sequence(references=0)
    table = plan_table(ids, plan(), call(), LAYOUT, forbidden, base_is_plain=True)
    near(table[0, 0], expected_table(ids[0], NEW))


def test_an_image_without_text_starts_at_the_first_token():
    ids = sequence(text=0, references=0)
    table = plan_table(ids, plan(), call(), GridLayout(GRID), forbidden, base_is_plain=True)
    near(table[0, 0], expected_table(ids[0], NEW))


def test_frames_of_a_video_follow_the_first_axis():
    grid = (3, 2, 4)
    ids = torch.tensor([[[f, r, c] for f in range(3) for r in range(2) for c in range(4)]], dtype=torch.float32)
    table = plan_table(ids, plan({0: np.array([0.7, 0.02])}), call(2, 4), GridLayout(grid), forbidden, base_is_plain=True)
    near(table[0, 0], expected_table(ids[0], {0: np.array([0.7, 0.02])}))


def test_axes_the_plan_leaves_alone_keep_the_models_frequencies():
    ids = sequence(references=0)
    ids[..., 0] = 4
    table = plan_table(ids, plan({2: NEW[2]}), call(), LAYOUT, forbidden, base_is_plain=True)
    near(table[0, 0], expected_table(ids[0], {2: NEW[2]}))


@pytest.mark.parametrize("layout", ["grid", "mask"])
@pytest.mark.parametrize("on_text", [True, False])
def test_magnitudes_reach_the_text_only_if_their_scope_says_so(on_text, layout):
    ids = sequence(references=0)
    m = {1: magnitude(1), 2: magnitude(2)}
    where = LAYOUT if layout == "grid" else MaskLayout(torch.arange(TEXT + IMAGE) < TEXT)
    table = plan_table(ids, plan(magnitudes=m, text=m if on_text else None), call(), where, forbidden, base_is_plain=True)
    near(table[0, 0, :TEXT], expected_table(ids[0, :TEXT], NEW, m if on_text else None))
    near(table[0, 0, TEXT:], expected_table(ids[0, TEXT:], NEW, m))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_ids_beyond_256_are_recovered_exactly_from_their_steps(dtype):
    grid = (1, 3, 2500)
    exact = sequence(grid, references=0)
    rounded = exact.to(dtype)
    assert not torch.equal(rounded.float(), exact)
    layout = GridLayout(grid, TEXT, (1.0, 1.0, 1.0))
    found, wanted = (plan_table(ids, plan(), call(3, 2500), layout, forbidden, base_is_plain=True) for ids in (rounded, exact))
    assert torch.equal(found, wanted)
    near(found[0, 0], expected_table(exact[0], NEW))


def test_half_precision_ids_keep_the_origin_and_step_of_their_grid():
    grid = (1, 3, 700)
    exact = sequence(grid, text=0, references=0)
    exact[..., 2] = 2 * exact[..., 2] + 16
    layout = GridLayout(grid, 0, (1.0, 1.0, 2.0))
    found = plan_table(exact.bfloat16(), plan(), call(3, 700), layout, forbidden, base_is_plain=True)
    near(found[0, 0], expected_table(exact[0], NEW))


@pytest.mark.parametrize("steps", [(), (1.0, 1.0, 1.0)])
def test_fractional_ids_are_respected(steps):
    ids = sequence(references=0)
    ids[0, TEXT:, 1] = ids[0, TEXT:, 1] * 0.5 + 0.25
    ids[0, TEXT:, 2] = ids[0, TEXT:, 2] * 1.75 - 3
    table = plan_table(ids, plan(), call(), GridLayout(GRID, TEXT, steps), forbidden, base_is_plain=True)
    near(table[0, 0], expected_table(ids[0], NEW))


@pytest.mark.parametrize("base_is_plain", [True, False])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("on_text", [True, False])
def test_masks_and_grids_give_the_same_tokens_the_same_table(batch, on_text, base_is_plain):
    ids = sequence()
    base = hosts_own(ids, turned=0.0 if base_is_plain else 0.4)
    m = {1: magnitude(1, batch), 2: magnitude(2, batch)}
    what = plan(magnitudes=m, text=m if on_text else None)
    number = torch.arange(ids.shape[1])
    masks = MaskLayout(number < TEXT, number >= TEXT + IMAGE)
    by_grid = plan_table(ids, what, call(), LAYOUT, base, base_is_plain)
    by_mask = plan_table(ids, what, call(), masks, base, base_is_plain)
    assert by_mask.shape == by_grid.shape == (batch, 1, ids.shape[1], PAIRS, 2, 2)
    torch.testing.assert_close(by_mask, by_grid, rtol=0, atol=1e-6)
    assert torch.equal(by_mask[:, :, TEXT + IMAGE :], base(slice(TEXT + IMAGE, None)).expand(batch, -1, -1, -1, -1, -1))


def test_masked_tokens_may_come_in_any_order_and_differ_from_row_to_row():
    ids = sequence()
    tokens = ids.shape[1]
    orders = [torch.randperm(tokens, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    m = {1: magnitude(1, 2), 2: magnitude(2, 2)}
    number = torch.stack(orders)
    shuffled = torch.stack([ids[0, order] for order in orders])
    base = hosts_own(shuffled)
    masks = MaskLayout(number < TEXT, number >= TEXT + IMAGE)
    table = plan_table(shuffled, plan(magnitudes=m), call(), masks, base, base_is_plain=True)
    straight = plan_table(ids, plan(magnitudes=m), call(), LAYOUT, hosts_own(ids), base_is_plain=True)
    for row, order in enumerate(orders):
        image_or_text = order < TEXT + IMAGE
        torch.testing.assert_close(table[row, 0, image_or_text], straight[row, 0, order][image_or_text], rtol=0, atol=1e-6)
        assert torch.equal(table[row, 0, ~image_or_text], base(slice(None))[row, 0, ~image_or_text])


@pytest.mark.parametrize("layout", ["grid", "mask"])
@pytest.mark.parametrize(("turned", "scaled"), [(0.3, 1.0), (-1.2, 1.5)])
def test_on_a_table_another_pack_has_changed_angles_add_and_magnitudes_multiply(turned, scaled, layout):
    ids = sequence()
    base = hosts_own(ids, turned, scaled)
    m = {1: magnitude(1), 2: magnitude(2)}
    number = torch.arange(ids.shape[1])
    where = LAYOUT if layout == "grid" else MaskLayout(number < TEXT, number >= TEXT + IMAGE)
    table = plan_table(ids, plan(magnitudes=m), call(), where, base, base_is_plain=False)
    near(table[0, 0, TEXT : TEXT + IMAGE], scaled * expected_table(ids[0, TEXT : TEXT + IMAGE], NEW, m, turned), atol=1e-5)
    near(table[0, 0, :TEXT], scaled * expected_table(ids[0, :TEXT], NEW, None, turned), atol=1e-5)
    assert torch.equal(table[:, :, TEXT + IMAGE :], base(slice(TEXT + IMAGE, None)))


LAYOUTS = {"grid": LAYOUT, "mask": MaskLayout(torch.arange(TEXT + IMAGE + REFERENCES) < TEXT, torch.arange(29) >= TEXT + IMAGE)}


def anothers(ids: torch.Tensor, theirs: dict[int, np.ndarray], scaled: float = 1.0):
    """A pack's embedder with frequencies of its own on some axes."""
    table = torch.from_numpy(np.stack([expected_table(row, theirs) for row in ids])).float()[:, None] * scaled
    return lambda where: table[:, :, where]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_on_an_axis_that_another_pack_changes_too_ours_hold_and_nothing_adds_up(layout):
    """Positions halved by both would come to angles of zero; another pack's axis that we leave alone stays its own."""
    ids = sequence()
    half = {axis: plain(WIDTHS[axis]) / 2 for axis in (1, 2)}
    m = {1: magnitude(1), 2: magnitude(2)}
    clashes: dict[int, torch.Tensor] = {}
    base = anothers(ids, half, scaled=1.5)
    table = plan_table(ids, plan({1: half[1]}, magnitudes=m), call(), LAYOUTS[layout], base, False, clashes)
    image = ids[0, TEXT : TEXT + IMAGE]
    expected = expected_table(image, half, m)
    expected[:, :2] *= 1.5  # the index axis and the width, which we leave to the other
    expected[:, 5:] *= 1.5
    near(image_part(table)[0, 0], expected, atol=1e-5)
    assert {axis: bool(clash) for axis, clash in clashes.items()} == {1: True}
    assert torch.equal(table[:, :, TEXT + IMAGE :], base(slice(TEXT + IMAGE, None)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("change", ["one pair", "two per cent"])
def test_small_changes_of_another_pack_are_seen_at_a_pictures_size(change, layout):
    grid = (1, 64, 80)
    ids = sequence(grid)
    theirs = plain(3) * (0.98 if change == "two per cent" else np.array([1.0, 0.5, 1.0]))
    where = GridLayout(grid, TEXT)
    if layout == "mask":
        number = torch.arange(ids.shape[1])
        where = MaskLayout(number < TEXT, number >= TEXT + 64 * 80)
    clashes: dict[int, torch.Tensor] = {}
    table = plan_table(ids, plan(NEW), call(64, 80), where, anothers(ids, {2: theirs}), False, clashes)
    assert {axis: bool(clash) for axis, clash in clashes.items()} == {1: False, 2: True}
    near(table[0, 0, : TEXT + 64 * 80], expected_table(ids[0, : TEXT + 64 * 80], NEW), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_packs_rounding_is_no_change(dtype):
    grid = (1, 256, 300)
    ids = sequence(grid)
    exact = hosts_own(ids)(slice(None))
    clashes: dict[int, torch.Tensor] = {}
    plan_table(ids, plan(NEW), call(256, 300), GridLayout(grid, TEXT), lambda where: exact.to(dtype).float()[:, :, where], False, clashes)
    assert {axis: bool(clash) for axis, clash in clashes.items()} == {1: False, 2: False}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_places_that_we_move_hold_against_another_packs_frequencies(layout):
    ids = sequence()
    to = torch.tensor([[0.0, 2.0, 5.0, 7.0]], dtype=torch.float64)
    moved = Plan((None,) * 3, (None,) * 3, (None,) * 3, (None, to, None))
    base = anothers(ids, {1: plain(3) / 2, 2: plain(3) / 2})
    table = plan_table(ids, moved, call(), LAYOUTS[layout], base, False)
    image = ids[0, TEXT : TEXT + IMAGE].clone()
    image[:, 1] = to[0, image[:, 1].long()]
    near(image_part(table)[0, 0], expected_table(image, {2: plain(3) / 2}), atol=1e-5)


def test_a_plan_that_changes_nothing_leaves_a_foreign_table_bit_for_bit():
    ids = sequence()
    base = hosts_own(ids, 0.7, 1.3)
    table = plan_table(ids, plan({}), call(), LAYOUT, base, base_is_plain=False)
    assert torch.equal(table, base(slice(None)))


@pytest.mark.parametrize("layout", ["grid", "mask"])
def test_a_batch_of_magnitudes_gives_a_batch_of_tables(layout):
    ids = sequence()
    base = hosts_own(ids)
    number = torch.arange(ids.shape[1])
    where = LAYOUT if layout == "grid" else MaskLayout(number < TEXT, number >= TEXT + IMAGE)
    m = {1: magnitude(1, 3), 2: magnitude(2, 3)}
    together = plan_table(ids, plan(magnitudes=m, text=m), call(), where, base, base_is_plain=True)
    assert together.shape[0] == 3
    for row in range(3):
        single = {axis: value[row : row + 1] for axis, value in m.items()}
        alone = plan_table(ids, plan(magnitudes=single, text=single), call(), where, base, base_is_plain=True)
        assert torch.equal(together[row : row + 1], alone)
    assert not torch.equal(image_part(together)[0], image_part(together)[1])


def test_magnitudes_of_one_image_are_shared_where_another_axis_has_a_batch():
    ids = sequence(references=0)
    m = {1: magnitude(1, 2), 2: magnitude(2, 1)}
    table = plan_table(ids, plan(magnitudes=m), call(), LAYOUT, forbidden, base_is_plain=True)
    for row in range(2):
        near(table[row, 0, TEXT:], expected_table(ids[0, TEXT:], NEW, {1: m[1][row : row + 1], 2: m[2]}))


@pytest.mark.parametrize("batch", [1, 2])
def test_references_keep_the_table_of_their_row_when_ids_come_in_a_batch(batch):
    ids = sequence().expand(2, -1, -1)
    base = hosts_own(ids)
    table = plan_table(ids, plan(magnitudes={1: magnitude(1, batch)}), call(), LAYOUT, base, base_is_plain=True)
    assert torch.equal(table[:, :, TEXT + IMAGE :], base(slice(TEXT + IMAGE, None))[:batch])
