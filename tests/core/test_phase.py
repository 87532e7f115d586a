"""Cross-resolution phase-aligned attention against one softmax per query over keys rotated by exact angles."""

import math
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from rope_core import Call, Plan, RopeWorksError
from rope_core.active import ActivePlan, grouped_attention, running
from rope_core.layout import HIGH, LOW, MIDDLE
from rope_core.mixed.group_tables import GroupGrid
from rope_core.mixed.one_grid import OneGrid
from rope_core.mixed.phase import QueryGroups
from rope_core.mixed.regions import TokenLayout
from rope_core.stack import HEIGHT, INDEX, TIME, WIDTH, AxisSpan
from rope_core.table import rotate_keys

PAIRS = (2, 3, 3)  # of the first, the height and the width axis
BASE = 1e4
HEADS = 2
INDEX_OF_IMAGE = 4.0
UNTOUCHED = Plan((None,) * 3, (None,) * 3, (None,) * 3)


def plain(axis: int) -> torch.Tensor:
    return torch.tensor([BASE ** (-d / PAIRS[axis]) for d in range(PAIRS[axis])], dtype=torch.float64)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plan(seed: int, magnitudes: str = "none") -> Plan:
    """Frequencies of no rule on height and width; magnitudes "none", "image", "text" (too) or "batch" (of two, on text too)."""
    generator = torch.Generator().manual_seed(seed)
    frequencies = (None, *(plain(axis) * (0.5 + torch.rand(PAIRS[axis], generator=generator)) for axis in (1, 2)))

    def some() -> tuple:
        rows = 2 if magnitudes == "batch" else 1
        return (None, *(0.5 + torch.rand(rows, PAIRS[axis], generator=generator, dtype=torch.float64) for axis in (1, 2)))

    image = UNTOUCHED.magnitudes if magnitudes == "none" else some()
    return Plan(frequencies, image, some() if magnitudes in ("text", "batch") else UNTOUCHED.text_magnitudes)


def as_table(factors: torch.Tensor) -> torch.Tensor:
    """(batch, tokens, pairs) complex -> (batch, 1, tokens, pairs, 2, 2) float32."""
    a, b = factors.real, factors.imag
    return torch.stack((a, -b, b, a), -1).unflatten(-1, (2, 2))[:, None].float()


def as_complex(x: torch.Tensor) -> torch.Tensor:
    return torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())


@dataclass(frozen=True)
class Scene:
    """One sequence, text | strip | tail, and what is known about it by definition, token by token."""

    region: torch.Tensor
    ratio: int = 2
    outer: int = 0
    inner: int = 0
    padding: int = 0
    text: int = 3
    tail: int = 0
    tail_is_text: bool = False
    text_group: str = HIGH
    centred: bool = False
    first_axis: str = INDEX
    plans: dict = field(default_factory=lambda: {HIGH: UNTOUCHED, MIDDLE: UNTOUCHED, LOW: UNTOUCHED})
    base_turned: float = 0.0  # what another pack's embedder adds to every angle
    base_scaled: float = 1.0
    base_slowed: float = 1.0  # what its frequencies of height and width are divided by, where a plan leaves them alone
    text_start: dict = field(default_factory=lambda: {HIGH: None, MIDDLE: None, LOW: None})
    origin: dict = field(default_factory=lambda: dict.fromkeys((HIGH, MIDDLE, LOW), (0.0, 0.0, 0.0)))
    step: tuple = (1.0, 1.0, 1.0)
    batch: int = 1
    mask: str = "none"
    margin: int = 0

    @property
    def layout(self) -> TokenLayout:
        return TokenLayout(self.region, self.ratio, self.outer, self.inner, self.padding, self.margin)

    @property
    def ratios(self) -> dict[str, int]:
        """Places of full resolution per token and side, by group; in the order of their attention calls."""
        return {HIGH: 1, **({MIDDLE: 2} if self.margin else {}), LOW: self.ratio}

    @property
    def length(self) -> int:
        return self.text + self.layout.tokens + self.tail

    @property
    def ids(self) -> torch.Tensor:
        """As a host makes them for one row of patches: meaningless on the image's own axes."""
        tokens = self.layout.tokens
        row = torch.stack([torch.full((tokens,), INDEX_OF_IMAGE), torch.zeros(tokens), torch.arange(float(tokens))], -1)
        around = noise(self.text + self.tail, 3, seed=11).mul(3).round()
        return torch.cat([around[: self.text], row, around[self.text :]])[None].expand(self.batch, -1, -1)

    def hosts_own(self, axis: int) -> torch.Tensor:
        return plain(axis) / (self.base_slowed if axis else 1)

    def base(self, ids: torch.Tensor) -> torch.Tensor:
        angles = torch.cat([ids[..., axis : axis + 1].double() * self.hosts_own(axis) for axis in range(3)], -1) + self.base_turned
        return as_table(torch.polar(torch.full_like(angles, self.base_scaled), angles))

    def call(self, group: str) -> Call:
        frames, rows, columns = self.region.shape
        times = self.ratio // self.ratios[group]
        spans = zip((self.first_axis, HEIGHT, WIDTH), PAIRS, (frames, rows * times, columns * times), strict=True)
        axes = tuple(AxisSpan(role, pairs, BASE, length) for role, pairs, length in spans)
        return Call("Test", axes, torch.tensor(0.5), 16.0, lambda: torch.zeros(1, 1, rows, columns))

    def groups(self, kind=QueryGroups, *args) -> QueryGroups:
        grids = {g: GroupGrid(self.plans[g], self.call(g), self.origin[g], self.step, self.text_start[g]) for g in self.ratios}
        tokens = self.text + self.layout.tokens
        return kind(
            *args,
            layout=self.layout,
            high=grids[HIGH],
            low=grids[LOW],
            middle=grids.get(MIDDLE),
            start=lambda length: self.text if length >= tokens else None,
            base=self.base,
            base_is_plain=self.base_turned == 0 and self.base_scaled == self.base_slowed == 1,
            text_group=self.text_group,
            centred=self.centred,
            tail_is_text=self.tail_is_text,
        )

    # ---- by definition

    def tokens(self) -> list[tuple]:
        """(group, frame, row, column on its own grid), "padding", "text" or "tail", in order."""
        image = []
        for level in self.layout.levels:
            rows, columns = (side * self.ratio // self.ratios[level.group] for side in self.region.shape[1:])
            image += [(level.group, i // (rows * columns), i // columns % rows, i % columns) for i in level.tokens.tolist()]
        return [("text",)] * self.text + image + [("padding",)] * self.padding + [("tail",)] * self.tail

    def group_of(self, token: tuple) -> str:
        return {"text": self.text_group, LOW: LOW, MIDDLE: MIDDLE}.get(token[0], HIGH)

    def near(self, token: tuple, radius: int) -> torch.Tensor:
        """The cells around a token."""
        kind, frame, row, column = token
        if kind == "high":
            row, column = row // self.ratio, column // self.ratio
        return self.region[frame, max(row - radius, 0) : row + radius + 1, max(column - radius, 0) : column + radius + 1]

    def sees(self, group: str, token: tuple) -> bool:
        if token[0] in ("text", "tail", "padding"):
            return token[0] != "padding"
        if self.margin:
            finer = self.ratios[group] // self.ratios[token[0]]  # 0 where the token is the coarser
            return finer == 0 or token[2] % finer == token[3] % finer == 0
        if token[0] == "low":
            return group == LOW or not self.near(token, self.outer).any()
        on_low = token[2] % self.ratio == token[3] % self.ratio == 0
        return group == HIGH or (on_low and bool(self.near(token, self.inner).all()))

    def position(self, group: str, token: tuple, ids: torch.Tensor) -> list[float]:
        if token[0] in ("text", "tail", "padding"):
            start = self.text_start[group]
            moved = 0.0 if start is None or token[0] != "text" else start - self.ids[0, 0]
            return (ids + moved).tolist()
        kind, frame, row, column = token
        own, seen = (self.ratios[name] for name in (kind, group))
        moved = (own - seen) / 2 if self.centred else 0.0
        places = ((row * own + moved) / seen, (column * own + moved) / seen)
        found = [o + s * p for o, s, p in zip(self.origin[group], self.step, (frame, *places), strict=True)]
        layers = len(self.region) > 1  # which a host keeps as frames and counts on its index axis
        return found if self.first_axis == TIME or layers else [INDEX_OF_IMAGE, *found[1:]]

    def factors(self, group: str) -> torch.Tensor:
        """(2, tokens, pairs) complex: the rotation, with its magnitude, of every token on the grid of a group."""
        chosen, rows = self.plans[group], []
        for token, ids in zip(self.tokens(), self.ids[0], strict=True):
            image, text = token[0] in self.ratios, token[0] == "text" or (token[0] == "tail" and self.tail_is_text)
            where, row = self.position(group, token, ids), []
            for axis in range(3):
                theta = chosen.frequencies[axis] if image or text else None
                factor = (chosen.magnitudes if image else chosen.text_magnitudes)[axis] if image or text else None
                angle = where[axis] * (self.hosts_own(axis) if theta is None else theta) + self.base_turned
                size = self.base_scaled * (torch.ones(1, PAIRS[axis]) if factor is None else factor).double().expand(2, -1)
                row.append(torch.polar(size, angle.expand(2, -1)))
            rows.append(torch.cat(row, -1))
        return torch.stack(rows, 1)

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        q, k, v = (noise(self.batch, HEADS, self.length, 2 * sum(PAIRS), seed=seed) for seed in (1, 2, 3))
        return q, k, v

    def mask_of(self) -> torch.Tensor | None:
        shapes = {"keys": (self.batch, 1, 1, self.length), "pairs": (self.batch, 1, self.length, self.length)}
        shapes["one for all"] = (self.length, self.length)
        return None if self.mask == "none" else noise(*shapes[self.mask], seed=4)

    def expected(self) -> torch.Tensor:
        q, k, v = self.tensors()
        answer = torch.empty(v.shape, dtype=torch.float64)
        tokens = self.tokens()
        for group in self.ratios:
            factors = self.factors(group)[: self.batch, None]
            rotated_q, rotated_k = as_complex(q) * factors, as_complex(k) * factors
            scores = (rotated_q @ rotated_k.mH).real / math.sqrt(q.shape[-1])
            mask = self.mask_of()
            if mask is not None:
                scores = scores + mask
            seen = torch.tensor([self.sees(group, token) for token in tokens])
            own = torch.tensor([self.group_of(token) == group for token in tokens])
            weights = scores[..., seen].softmax(-1)
            answer[:, :, own] = (weights @ v.double()[:, :, seen])[:, :, own]
        return answer

    # ---- as found

    def rotated(self, groups: QueryGroups) -> tuple[torch.Tensor, torch.Tensor]:
        q, k, _ = self.tensors()
        table = groups.table(self.ids)
        assert table.dtype == torch.float32
        assert len(table) == max(self.batch, 1)
        return rotate_keys(q, table), rotate_keys(k, table)

    def found(self) -> torch.Tensor:
        groups = self.groups()
        return groups.attention(
            *self.rotated(groups), self.tensors()[2], self.mask_of(), dict.fromkeys(self.ratios, attend), rotate_keys, 2, 2
        )

    def check(self) -> None:
        compared = torch.tensor([token[0] != "padding" for token in self.tokens()])
        torch.testing.assert_close(
            self.found()[:, :, compared].double(), self.expected()[:, :, compared], rtol=1e-5, atol=1e-5, check_stride=False
        )


def attend(q, k, v, mask):
    return scaled_dot_product_attention(q, k, v, mask)


def region(frames: int = 1, rows: int = 3, columns: int = 4, seed: int = 0) -> torch.Tensor:
    cells = noise(frames, rows, columns, seed=seed) > 0
    cells.view(-1)[:2] = torch.tensor([True, False])  # hosts run no strip for an empty or a full region
    return cells


SCALED = {HIGH: plan(1), MIDDLE: plan(3), LOW: plan(2)}
CORNER = torch.tensor([[[True, False, False, False, False]] * 2 + [[False] * 5] * 2])  # three levels with a margin of 1 cell
THREE = {"region": CORNER, "ratio": 4, "margin": 1}
SCENES = {
    "as published": {},
    "no text": {"text": 0},
    "text with low": {"text_group": LOW},
    "ratio 3": {"ratio": 3},
    "ratio 4": {"ratio": 4},
    "frames": {"region": region(3), "first_axis": TIME},
    "frames, ratio 3, text with low": {"region": region(2), "first_axis": TIME, "ratio": 3, "text_group": LOW},
    "centres": {"centred": True},
    "centres, ratio 3": {"centred": True, "ratio": 3},
    "outer band": {"outer": 1},
    "inner band": {"inner": 1, "region": torch.tensor([[[True] * 4 + [False]] * 3])},
    "bands": {"outer": 1, "inner": 1, "region": region(2, 5, 5)},
    "padding": {"padding": 5},
    "reference": {"tail": 4},
    "reference, padding, text with low": {"tail": 4, "padding": 2, "text_group": LOW},
    "text behind": {"tail": 4, "tail_is_text": True},
    "frequencies per group": {"plans": SCALED},
    "frequencies per group, text with low": {"plans": SCALED, "text_group": LOW},
    "frequencies for one group": {"plans": {HIGH: plan(1), LOW: UNTOUCHED}},
    "frequencies per group, reference": {"plans": SCALED, "tail": 4},
    "frequencies per group, text behind": {"plans": SCALED, "tail": 4, "tail_is_text": True},
    "frequencies per group, centres": {"plans": SCALED, "centred": True},
    "magnitudes": {"plans": {HIGH: plan(1, "image"), LOW: plan(2, "image")}},
    "magnitudes on text": {"plans": {HIGH: plan(1, "text"), LOW: plan(2, "text")}, "text_group": LOW},
    "magnitudes on text behind": {"plans": {HIGH: plan(1, "text"), LOW: plan(2)}, "tail": 3, "tail_is_text": True},
    "magnitudes per image": {"plans": {HIGH: plan(1, "batch"), LOW: plan(2, "batch")}, "batch": 2, "tail": 2},
    "magnitudes per image for high": {"plans": {HIGH: plan(1, "batch"), LOW: UNTOUCHED}, "batch": 2, "tail": 2},
    "magnitudes per image for low": {"plans": {HIGH: plan(1, "text"), LOW: plan(2, "batch")}, "batch": 2, "text_group": LOW},
    "foreign table": {"base_turned": 0.3, "base_scaled": 1.5},
    "foreign table, frequencies, reference": {"base_turned": 0.3, "base_scaled": 1.5, "plans": SCALED, "tail": 3},
    "foreign frequencies": {"base_slowed": 2.0, "tail": 2},
    "foreign frequencies and ours": {"base_slowed": 2.0, "plans": SCALED, "tail": 3},
    "foreign frequencies and ours for one group": {"base_slowed": 2.0, "plans": {HIGH: plan(1, "text"), LOW: UNTOUCHED}, "text_group": LOW},
    "text starts by group": {"text_start": {HIGH: 6.0, LOW: 3.0}, "tail": 2},
    "origins by group": {"origin": {HIGH: (0, -3, -4), LOW: (0, -1, -2)}, "step": (1.0, 1.5, 0.5)},
    "batch": {"batch": 2},
    "mask of keys": {"mask": "keys", "batch": 2, "tail": 2, "padding": 1},
    "mask of pairs": {"mask": "pairs", "batch": 2, "tail": 2, "text_group": LOW},
    "mask of pairs for all": {"mask": "one for all"},
    "three levels": THREE,
    "three levels, frames": {**THREE, "region": torch.cat([CORNER, CORNER.flip(1), CORNER & False, CORNER | True]), "first_axis": TIME},
    "three levels, text with low": {**THREE, "text_group": LOW, "plans": SCALED},
    "three levels, centres": {**THREE, "centred": True, "plans": SCALED},
    "three levels, all there is": {
        **THREE, "padding": 2, "tail": 3, "tail_is_text": True, "mask": "pairs", "batch": 2,
        "plans": {HIGH: plan(1, "batch"), MIDDLE: plan(3, "text"), LOW: plan(2, "image")},
        "text_start": {HIGH: 6.0, MIDDLE: 4.0, LOW: 3.0},
        "origin": {HIGH: (0, -3, -4), MIDDLE: (0, -2, -2), LOW: (0, -1, -2)}, "step": (1.0, 1.5, 0.5),
    },
    "three levels, reference, one plan of three": {**THREE, "tail": 4, "plans": {HIGH: UNTOUCHED, MIDDLE: plan(3, "text"), LOW: UNTOUCHED}},
    "three levels on a foreign table": {**THREE, "base_turned": 0.3, "base_scaled": 1.5, "plans": SCALED, "tail": 2},
    "three levels, foreign frequencies and ours": {**THREE, "base_slowed": 2.0, "plans": SCALED, "tail": 3},
    "a margin over the whole rest": {**THREE, "margin": 5, "text_group": LOW, "plans": SCALED},
    "a margin of no cell": {**THREE, "region": torch.cat([CORNER & False, CORNER | True])},
}  # fmt: skip


@pytest.mark.parametrize("options", SCENES.values(), ids=SCENES.keys())
def test_every_query_attends_to_the_keys_of_its_group_on_its_own_grid(options):
    Scene(**{"region": region(), **options}).check()


plans = st.builds(plan, st.integers(0, 9), st.sampled_from(["none", "image", "text"])) | st.just(UNTOUCHED)
AROUND = {
    "padding": st.integers(0, 2),
    "text": st.integers(0, 3),
    "tail": st.integers(0, 2),
    "tail_is_text": st.booleans(),
    "text_group": st.sampled_from([HIGH, LOW]),
    "centred": st.booleans(),
    "first_axis": st.sampled_from([TIME, INDEX]),
    "base_turned": st.sampled_from([0.0, 0.3]),
    "batch": st.integers(1, 2),
    "mask": st.sampled_from(["none", "keys", "pairs", "one for all"]),
}


@settings(max_examples=40, deadline=None)
@given(
    scene=st.builds(
        Scene,
        region=st.builds(region, st.integers(1, 2), st.integers(1, 4), st.integers(2, 4), st.integers(0, 99)),
        ratio=st.integers(2, 4),
        outer=st.integers(0, 2),
        inner=st.integers(0, 2),
        **AROUND,
        plans=st.fixed_dictionaries({HIGH: plans, LOW: plans}),
        text_start=st.sampled_from([{HIGH: None, LOW: None}, {HIGH: 5.0, LOW: 2.0}]),
    )
)
def test_so_does_it_in_any_combination(scene):
    scene.check()


@settings(max_examples=30, deadline=None)
@given(
    scene=st.builds(
        Scene,
        region=st.builds(region, st.integers(1, 2), st.integers(1, 4), st.integers(2, 5), st.integers(0, 99)),
        ratio=st.just(4),
        margin=st.integers(1, 3),
        **AROUND,
        plans=st.fixed_dictionaries({HIGH: plans, MIDDLE: plans, LOW: plans}),
        text_start=st.sampled_from([dict.fromkeys((HIGH, MIDDLE, LOW)), {HIGH: 5.0, MIDDLE: 2.0, LOW: 2.0}]),
    )
)
def test_so_does_it_with_three_levels(scene):
    scene.check()


# ---- the figure of the paper


def positions_seen(scene: Scene) -> dict[str, tuple[list[tuple[int, int]], list]]:
    """Per query group: (row, column) of its keys on its own grid, read from their angles, and which queries it holds."""
    groups, found = scene.groups(), {}
    key = torch.tensor([1.0, 0.0]).repeat(sum(PAIRS)).expand(1, 1, scene.length, -1)
    table = groups.table(scene.ids)

    def record(group, q, k, v, mask):
        angle = as_complex(k)[0, 0].angle()
        slowest = torch.stack([angle[:, sum(PAIRS[: axis + 1]) - 1] / plain(axis)[-1] for axis in (1, 2)], -1)
        torch.testing.assert_close(slowest, slowest.round(), rtol=0, atol=1e-3)
        found[group] = ([tuple(place) for place in slowest.round().int().tolist()], q[0, 0, :, 0].int().tolist())
        return q

    number = torch.arange(float(scene.length)).view(1, 1, -1, 1).expand(1, 1, -1, 2 * sum(PAIRS))
    attends = {group: partial(record, group) for group in scene.ratios}
    groups.attention(number, rotate_keys(key, table), number, None, attends, rotate_keys, 2, 2)
    return found


def test_the_index_map_of_the_paper():
    scene = Scene(torch.tensor([[[False, False, False, True, True, False, False, False, False]]]), text=0)
    seen = positions_seen(scene)
    tokens = scene.tokens()
    high_keys, high_queries = seen[HIGH]
    low_keys, low_queries = seen[LOW]
    # A row of cells is two rows of high-resolution tokens; the figure shows the first.
    assert sorted(column for row, column in high_keys if row == 0) == [0, 2, 4, 6, 7, 8, 9, 10, 12, 14, 16]
    assert sorted(column for row, column in high_keys if row == 1) == [6, 7, 8, 9]
    assert sorted(low_keys) == [(0, column) for column in range(9)]
    assert sorted(tokens[i][2:] for i in high_queries) == [(row, column) for row in range(2) for column in (6, 7, 8, 9)]
    assert sorted(tokens[i][3] for i in low_queries) == [0, 1, 2, 5, 6, 7, 8]


@settings(max_examples=40, deadline=None)
@given(
    st.builds(region, st.just(1), st.integers(1, 5), st.integers(2, 5), st.integers(0, 99)),
    st.integers(2, 4),
    st.integers(0, 2),
    st.integers(0, 2),
    st.integers(0, 2),
)
def test_low_queries_see_one_key_per_cell_and_high_queries_one_per_place(cells, ratio, outer, inner, padding):
    scene = Scene(cells, ratio, outer, inner, padding, text=0)
    seen = positions_seen(scene)
    _, rows, columns = cells.shape
    assert sorted(seen[LOW][0]) == [(row, column) for row in range(rows) for column in range(columns)]
    high = seen[HIGH][0]
    assert len(set(high)) == len(high)
    fine = {place for place in high if scene.near(("high", 0, *place), outer).any()}
    assert len(fine) == ratio**2 * len({(row // ratio, column // ratio) for row, column in fine})
    coarse = [(row, column) for row in range(rows) for column in range(columns) if not scene.near(("low", 0, row, column), outer).any()]
    assert sorted(set(high) - fine) == sorted((row * ratio, column * ratio) for row, column in coarse)


@settings(max_examples=30, deadline=None)
@given(st.builds(region, st.just(1), st.integers(1, 5), st.integers(2, 5), st.integers(0, 99)), st.integers(1, 3), st.integers(0, 2))
def test_with_three_levels_each_group_sees_one_key_per_place_of_its_grid_or_of_coarser_ones(cells, margin, padding):
    scene = Scene(cells, 4, margin=margin, padding=padding, text=0)
    near = [[int(scene.region[0, r, c]) * 4 or 2 * int(scene.near(("low", 0, r, c), margin).any()) or 1 for c in range(cells.shape[2])]
            for r in range(cells.shape[1])]  # tokens per side of every cell  # fmt: skip
    seen = positions_seen(scene)
    for group, ratio in scene.ratios.items():
        if group not in seen:
            assert not any(scene.group_of(token) == group for token in scene.tokens())
            continue
        expected = []
        for row, line in enumerate(near):
            for column, tokens in enumerate(line):
                side, apart = min(tokens, 4 // ratio), 4 // ratio // min(tokens, 4 // ratio)
                corner = row * 4 // ratio, column * 4 // ratio
                expected += [(corner[0] + y * apart, corner[1] + x * apart) for y in range(side) for x in range(side)]
        assert sorted(seen[group][0]) == sorted(expected), group


# ---- what attention is given


class Recorded:
    def __init__(self, scene: Scene) -> None:
        self.calls: list[tuple] = []
        self.layout, self.groups = scene.layout, scene.groups()
        self.q, self.k = scene.rotated(self.groups)
        self.v = scene.tensors()[2]
        self.answer = self.groups.attention(
            self.q, self.k, self.v, scene.mask_of(), {"high": self._attend, "low": self._attend}, rotate_keys, 2, 2
        )

    def _attend(self, q, k, v, mask):
        self.calls.append((q, k, v, mask))
        return q


@pytest.mark.parametrize("text_group", [HIGH, LOW])
@pytest.mark.parametrize("plans", [{HIGH: UNTOUCHED, LOW: UNTOUCHED}, SCALED], ids=["one plan", "two plans"])
def test_keys_of_the_own_group_and_all_values_and_queries_are_bit_exact(plans, text_group):
    scene = Scene(region(1, 4, 4), outer=1, text=3, tail=2, plans=plans, text_group=text_group)
    recorded = Recorded(scene)
    tokens = scene.tokens()
    changed = 0
    for group, (q, k, v, _) in zip((HIGH, LOW), recorded.calls, strict=True):
        seen = torch.tensor([i for i, token in enumerate(tokens) if scene.sees(group, token)])
        queries = torch.tensor([i for i, token in enumerate(tokens) if scene.group_of(token) == group])
        kept = [scene.group_of(tokens[i]) == group or tokens[i][0] == "tail" for i in seen]
        assert torch.equal(v, recorded.v[:, :, seen])
        assert torch.equal(q, recorded.q[:, :, queries])
        assert torch.equal(k[:, :, kept], recorded.k[:, :, seen][:, :, kept])
        changed += int((k != recorded.k[:, :, seen]).any(-1).sum())
    assert changed
    assert torch.equal(recorded.answer, recorded.q)  # every query is answered in its own place


def test_text_keys_are_bit_exact_in_both_groups_where_their_plans_do_not_differ():
    recorded = Recorded(Scene(region(), text=3))
    for _, k, _, _ in recorded.calls:
        assert torch.equal(k[:, :, :3], recorded.k[:, :, :3])


def test_pieces_that_adjoin_are_views():
    def shares(part: torch.Tensor, whole: torch.Tensor) -> bool:
        return part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()

    recorded = Recorded(Scene(region(), text=3))
    (high_q, _, _, _), (low_q, _, low_v, _) = recorded.calls
    assert shares(low_v, recorded.v)
    assert shares(low_q, recorded.q)
    assert not shares(high_q, recorded.q)  # text in front, high-resolution tokens behind
    without_text = Recorded(Scene(region(), text=0))
    assert shares(without_text.calls[0][0], without_text.q)
    assert shares(without_text.calls[0][2], without_text.v)
    with_low = Recorded(Scene(region(), text=3, text_group=LOW))
    assert shares(with_low.calls[0][0], with_low.q)
    assert shares(with_low.calls[1][0], with_low.q)


class Sizes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        answer = func(*args, **(kwargs or {}))
        self.names.add(func.overloadpacket.__name__)
        self.largest = max([self.largest, *(t.numel() for t in torch.utils._pytree.tree_leaves(answer) if isinstance(t, torch.Tensor))])
        return answer


@pytest.mark.parametrize("tail", [0, 4])
def test_attention_neither_gathers_nor_makes_anything_of_the_size_of_all_pairs(tail):
    scene = Scene(region(1, 12, 12), outer=1, inner=1, text=5, tail=tail, plans=SCALED)
    groups = scene.groups()
    q, k = scene.rotated(groups)
    v = scene.tensors()[2]
    with Sizes() as seen:
        groups.attention(q, k, v, None, dict.fromkeys(("high", "low"), lambda q, k, v, mask: q), rotate_keys, 2, 2)
    assert seen.largest <= q.numel() < scene.length**2
    assert "slice" in seen.names or "narrow" in seen.names
    assert not {name for name in seen.names if "index" in name or name in ("gather", "take", "nonzero", "masked_select")}


def test_two_calls_hold_no_more_scores_than_the_layout_promises():
    recorded = Recorded(Scene(region(1, 6, 6), outer=1, inner=1, text=5))
    assert sum(q.shape[2] * k.shape[2] for q, k, _, _ in recorded.calls) == recorded.layout.scores(5)


def test_masks_are_cut_as_their_queries_and_keys_are():
    scene = Scene(region(), text=2, tail=1, padding=2, mask="one for all")
    tokens = scene.tokens()
    mask = scene.mask_of()
    for group, (_, _, _, cut) in zip((HIGH, LOW), Recorded(scene).calls, strict=True):
        rows = [scene.group_of(token) == group for token in tokens]
        columns = [scene.sees(group, token) for token in tokens]
        assert torch.equal(cut, mask[rows][:, columns])


def test_tokens_before_heads_and_heads_before_tokens_give_the_same_answer():
    scene = Scene(region(), text=3, tail=2, plans=SCALED)
    groups = scene.groups()
    q, k = scene.rotated(groups)
    v = scene.tensors()[2]
    active = ActivePlan(UNTOUCHED, scene.call(HIGH), 1, lambda ids: None, consulted=True, groups=groups)

    def flat(x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2).flatten(2)

    def attend_flat(q, k, v, mask):
        return flat(attend(*(x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v)), mask))

    with running(active):
        split = grouped_attention(q, k, v, None, HEADS, True, lambda *tensors: flat(attend(*tensors)))
        joined = grouped_attention(flat(q), flat(k), flat(v), None, HEADS, False, attend_flat)
    assert torch.equal(split, joined)
    assert torch.equal(split, flat(scene.found()))
    assert not torch.equal(grouped_attention(q, k, v, None, HEADS, True, attend), scene.found())  # and only while it runs


def test_cross_attention_and_sequences_without_image_are_left_alone():
    scene = Scene(region())
    groups = scene.groups()
    _, k = scene.rotated(groups)
    given = []

    def record(*tensors):
        given.append(tensors)
        return tensors[0]

    text = noise(1, HEADS, scene.text, 16)
    mask = noise(3, 3)
    for q, keys in ((k, text), (text, text), (text, k)):
        assert groups.attention(q, keys, keys, mask, {"high": record, "low": record}, rotate_keys, 2, 2) is q
        assert all(a is b for a, b in zip(given[-1], (q, keys, keys, mask), strict=True))


# ---- tables


def test_a_table_holds_every_token_on_the_grid_of_its_own_group():
    scene = Scene(region(2), first_axis=TIME, text=2, tail=2, plans=SCALED, outer=1)
    table = scene.groups().table(scene.ids)
    high = torch.tensor([scene.group_of(token) == HIGH for token in scene.tokens()])
    expected = torch.where(high[:, None], scene.factors(HIGH)[:1], scene.factors(LOW)[:1])
    torch.testing.assert_close(table, as_table(expected), rtol=0, atol=1e-6)


def test_a_text_rotated_apart_from_the_image_is_turned_like_one_in_front_of_it():
    together = Scene(region(), text=4, plans={HIGH: plan(1, "text"), LOW: plan(2, "text")}, tail_is_text=True)
    groups = together.groups()
    ids = together.ids
    groups.start = lambda length: 0 if length == together.layout.tokens else None
    table = torch.cat([groups.table(ids[:, :4]), groups.table(ids[:, 4:])], 2)
    torch.testing.assert_close(table, together.groups().table(ids), rtol=0, atol=1e-6)
    q, k, v = together.tensors()
    groups.start = lambda length: 4
    found = groups.attention(rotate_keys(q, table), rotate_keys(k, table), v, None, {"high": attend, "low": attend}, rotate_keys, 2, 2)
    torch.testing.assert_close(found, together.expected().float(), rtol=1e-5, atol=1e-5)


def test_a_text_rotated_apart_has_a_table_for_every_image_of_a_batch():
    scene = Scene(region(), text=4, batch=2, tail_is_text=True)
    groups = scene.groups()
    assert len(groups.table(scene.ids[:, :3])) == len(groups.table(scene.ids)) == 2


def test_other_sequences_have_no_table_of_ours():
    scene = Scene(region())
    assert scene.groups().table(scene.ids[:, :3]) is None


def test_prompts_of_different_lengths_in_one_batch_are_refused_where_they_move_the_image():
    scene = Scene(region(), text=0, tail=2, tail_is_text=True, batch=2)
    ids = scene.ids.clone()
    scene.groups().table(ids)
    ids[1, -1] += 1
    with pytest.raises(RopeWorksError, match="different lengths"):
        scene.groups().table(ids)


@pytest.mark.parametrize("group", [HIGH, LOW])
def test_the_baseline_puts_everything_on_one_grid_and_calls_attention_once(group):
    scene = Scene(region(), text=2, plans=SCALED)
    groups = scene.groups(OneGrid, group)
    torch.testing.assert_close(groups.table(scene.ids), as_table(scene.factors(group)[:1]), rtol=0, atol=1e-6)
    q, k, v = scene.tensors()
    calls = []

    def record(*tensors):
        calls.append(tensors)
        return tensors[0]

    groups.attention(q, k, v, None, {"high": record, "low": record}, rotate_keys, 2, 2)
    assert len(calls) == 1
    assert all(a is b for a, b in zip(calls[0], (q, k, v, None), strict=True))
