"""Shared attention against one softmax per query, written out, in either layout, with masks, rows, tokens and several references."""

import math
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from rope_core import Call, Plan
from rope_core.active import ActivePlan, AttentionCall, grouped_attention, running
from rope_core.errors import RopeWorksError
from rope_core.layout import HIGH
from rope_core.pairing import HALVES
from rope_core.reference.bank import ImageCalls, KeyBank, Recording, pair_sizes
from rope_core.reference.shared import Reading, Sharing
from rope_core.stack import HEIGHT, INDEX, WIDTH, AxisSpan
from rope_core.table import rotate_keys

BATCH, HEADS, TEXT, IMAGE, CHANNELS = 3, 2, 3, 6, 8
LENGTH = TEXT + IMAGE


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def start(length: int) -> int | None:
    return TEXT if length == LENGTH else None


def target(seed: int = 1) -> tuple[torch.Tensor, ...]:
    return tuple(noise(BATCH, HEADS, LENGTH, CHANNELS, seed=seed + i) for i in range(3))


def flat(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2).flatten(2)


def bank(references: int = 1, tokens: int = 4, seed: int = 20, numbers: tuple[int, ...] = (0,)) -> KeyBank:
    found = KeyBank()
    for number in numbers:
        q, k, v = (noise(references, HEADS, tokens, CHANNELS, seed=seed + 10 * number + i) for i in range(3))
        found.keep(number, q, k, v)
    return found


def reading(source: KeyBank, **changes) -> Reading:
    return Reading(**{"bank": source, "scale": torch.ones(CHANNELS), **changes})


def active(shared, group: str = HIGH) -> ActivePlan:
    axes = (AxisSpan(INDEX, 1, 1e4, 1), AxisSpan(HEIGHT, 1, 1e4, 2), AxisSpan(WIDTH, 2, 1e4, 3))
    call = Call("Test", axes, torch.tensor(0.5), 16.0, lambda: torch.zeros(1))
    return ActivePlan(Plan((None,) * 3, (None,) * 3, (None,) * 3), call, BATCH, lambda ids: None, shared=shared, group=group)


def through(shared, q, k, v, mask=None, skip_reshape: bool = True, skip_output: bool = False, rotate=rotate_keys) -> torch.Tensor:
    """One attention call as a host makes it; the answer as (batch, heads, tokens, channels)."""

    def attend(q, k, v, mask):
        heads = (q, k, v) if skip_reshape else (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v))
        mask = mask[:, None] if mask is not None and mask.dim() == 3 else mask
        answer = scaled_dot_product_attention(*heads, attn_mask=mask)
        return answer if skip_output else flat(answer)

    given = (q, k, v) if skip_reshape else (flat(x) for x in (q, k, v))
    with running(active(shared)):
        answer = grouped_attention(*given, mask, HEADS, skip_reshape, attend, 2 if skip_output else 1, rotate)
    return answer if skip_output else answer.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def sharing(*readings: Reading, every: int = 1) -> Sharing:
    return Sharing(readings, ImageCalls(start, every), IMAGE)


def by_definition(q, k, v, readings, mask=None, number: int = 0, turns=None) -> torch.Tensor:
    """Every query for itself in float64: exp(logit) of its own keys and gamma * exp(logit) of the columns it reads."""
    q, k, v = (x.double() for x in (q, k, v))
    answer = torch.zeros_like(q)
    for row in range(len(q)):
        for query in range(q.shape[2]):
            own = q[row, :, query, None] @ k[row].transpose(-1, -2) / math.sqrt(CHANNELS)
            weights = [(own[:, 0] + allowed(mask, row, query)).exp()]
            values = [v[row]]
            for found in readings:
                entry = found.bank.entries.get(number)
                if entry is None or not reads(found, row, query):
                    continue
                keys = rotate_keys(entry.k * found.scale, turns) if turns is not None else entry.k * found.scale
                for reference_k, reference_v in zip(keys.double(), entry.v.double(), strict=True):
                    logits = q[row, :, query, None] @ reference_k.transpose(-1, -2) / math.sqrt(CHANNELS)
                    weights.append(math.exp(found.bias) * logits[:, 0].exp())
                    values.append(reference_v)
            together = torch.cat(weights, -1)
            answer[row, :, query] = ((together / together.sum(-1, keepdim=True))[:, None] @ torch.cat(values, 1))[:, 0]
    return answer.float()


def reads(found: Reading, row: int, query: int) -> bool:
    in_rows = found.rows is None or found.rows.start <= row < found.rows.stop
    return in_rows and (found.covered is None or (query >= TEXT and bool(found.covered[query - TEXT])))


def allowed(mask, row: int, query: int):
    if mask is None:
        return 0.0
    full = mask if mask.dim() == 4 else mask[:, None] if mask.dim() == 3 else mask[None, None]
    found = full.expand(BATCH, HEADS, LENGTH, LENGTH)[row, :, query]
    return torch.where(found, 0.0, -math.inf).double() if found.dtype == torch.bool else found.double()


def masks() -> dict[str, torch.Tensor | None]:
    hidden = noise(BATCH, 1, LENGTH, LENGTH, seed=5) > -0.8
    hidden |= torch.eye(LENGTH, dtype=torch.bool)
    added = noise(BATCH, 1, LENGTH, LENGTH, seed=6)
    return {
        "none": None,
        "bool": hidden[:1],
        "bool per image": hidden,
        "added": added[0, 0],
        "added per image": added,
        "added without heads": added[:, 0],
        "keys alone": added[:1, :, :1],
        "keys per image": added[:, 0, :1],
        "heads": noise(BATCH, HEADS, LENGTH, LENGTH, seed=7),
    }


SOME_TOKENS = torch.tensor([True, False, True, True, False, False])
OTHER_TOKENS = torch.tensor([True, True, False, False, False, True])
SCALE = torch.rand(CHANNELS // 2, generator=torch.Generator().manual_seed(9)).repeat_interleave(2) * 2
READERS = {
    "one": lambda: [reading(bank())],
    "two references in one": lambda: [reading(bank(2))],
    "scaled": lambda: [reading(bank(2), scale=SCALE)],
    "weak": lambda: [reading(bank(), bias=math.log(0.3))],
    "two, one weak": lambda: [reading(bank(), bias=math.log(0.3)), reading(bank(2, 5, seed=40), scale=SCALE)],
    "some rows": lambda: [reading(bank(), rows=slice(1, 2))],
    "rows that overlap": lambda: [reading(bank(), rows=slice(0, 2)), reading(bank(1, 5, seed=40), rows=slice(1, 3), bias=-0.5)],
    "some tokens": lambda: [reading(bank(), covered=SOME_TOKENS)],
    "tokens that overlap": lambda: [reading(bank(), covered=SOME_TOKENS), reading(bank(2, 5, seed=40), covered=OTHER_TOKENS)],
    "tokens and everywhere": lambda: [reading(bank(), covered=SOME_TOKENS, bias=-1.0), reading(bank(1, 5, seed=40))],
    "tokens of some rows": lambda: [reading(bank(2), covered=SOME_TOKENS, rows=slice(0, 1)), reading(bank(1, 5), rows=slice(2, 3))],
    "no token": lambda: [reading(bank(), covered=torch.zeros(IMAGE, dtype=torch.bool))],
    "all tokens": lambda: [reading(bank(), covered=torch.ones(IMAGE, dtype=torch.bool))],
}


@pytest.mark.parametrize("readers", READERS.values(), ids=READERS)
@pytest.mark.parametrize("mask", masks().values(), ids=masks())
def test_shared_attention_is_one_softmax(readers, mask):
    readings = readers()
    expected = by_definition(*target(), readings, mask)
    for skip_reshape, skip_output in ((True, False), (True, True), (False, False), (False, True)):
        found = through(sharing(*readings), *target(), mask, skip_reshape, skip_output)
        assert (found - expected).abs().max() < 1e-5, (skip_reshape, skip_output)


def test_columns_weigh_exactly_gamma():
    """Values of ones on the reference's columns and zeros elsewhere: the answer is their share of all weights."""
    q, k, v = target()
    source = bank()
    source.keep(0, noise(1, HEADS, 4, CHANNELS), source.entries[0].k, torch.ones(1, HEADS, 4, CHANNELS))
    whole = through(sharing(reading(source)), q, k, torch.zeros_like(v))
    odds = whole / (1 - whole)
    for gamma in (0.9, 0.5, 0.01):
        found = through(sharing(reading(source, bias=math.log(gamma))), q, k, torch.zeros_like(v))
        assert torch.allclose(found / (1 - found), gamma * odds, rtol=1e-4)


def test_a_vanishing_strength_approaches_plain_attention():
    q, k, v = target()
    plain = through(None, q, k, v)
    apart = [(through(sharing(reading(bank(), bias=math.log(gamma))), q, k, v) - plain).abs().max() for gamma in (1.0, 1e-2, 1e-4, 1e-8)]
    assert apart[0] > 0.1
    assert all(later < earlier / 20 for earlier, later in pairwise(apart[:3]))
    assert apart[-1] < 1e-6


def test_who_does_not_read_gets_the_plain_answer():
    q, k, v = target()
    plain = through(None, q, k, v)
    rows = through(sharing(reading(bank(), rows=slice(1, 2))), q, k, v)
    for alone in (slice(0, 1), slice(2, 3)):
        assert torch.equal(rows[alone], through(None, q[alone], k[alone], v[alone])), "the very call the model makes for these rows"
    assert torch.allclose(rows[[0, 2]], plain[[0, 2]], atol=1e-6)
    assert (rows[1] - plain[1]).abs().max() > 1e-2
    found, everywhere = (through(sharing(reading(bank(), covered=c)), q, k, v) for c in (SOME_TOKENS, None))
    assert torch.allclose(found[:, :, :TEXT], plain[:, :, :TEXT], atol=1e-6), "text under a mask stays plain"
    assert torch.allclose(found[:, :, TEXT:][:, :, ~SOME_TOKENS], plain[:, :, TEXT:][:, :, ~SOME_TOKENS], atol=1e-6)
    assert torch.allclose(found[:, :, TEXT:][:, :, SOME_TOKENS], everywhere[:, :, TEXT:][:, :, SOME_TOKENS], atol=1e-6)


def test_nothing_is_added_to_a_call_without_need_of_a_mask():
    """Kernels without mask support keep working at full strength."""
    seen = []

    def attend(q, k, v, mask):
        seen.append(mask)
        return flat(scaled_dot_product_attention(q, k, v, attn_mask=mask))

    for bias in (0.0, -1.0):
        with running(active(sharing(reading(bank(), bias=bias)))):
            grouped_attention(*target(), None, HEADS, True, attend)
    assert seen[0] is None
    assert seen[1].shape == (1, 1, 1, LENGTH + 4), "one row for all queries, heads and images"
    assert torch.equal(seen[1].flatten(), torch.tensor([0.0] * LENGTH + [-1.0] * 4))


def test_turned_columns():
    angles = noise(4, CHANNELS // 2, seed=3)
    turn = torch.stack((angles.cos(), -angles.sin(), angles.sin(), angles.cos()), -1).unflatten(-1, (2, 2))[None, None]
    readings = [reading(bank(2), turns={HIGH: turn})]
    expected = by_definition(*target(), readings, turns=turn)
    for skip_reshape in (True, False):
        assert (through(sharing(*readings), *target(), None, skip_reshape) - expected).abs().max() < 1e-5
    other_group = [reading(bank(2), turns={"low": turn})]
    assert (through(sharing(*other_group), *target()) - by_definition(*target(), other_group)).abs().max() < 1e-5


# ---- which calls share


def test_the_nth_call_reads_the_nth_entry():
    readings = [reading(bank(1, 4, numbers=(1, 3)))]
    shared = sharing(*readings)
    for number in range(5):
        q, k, v = target(seed=number)
        found = through(shared, q, k, v)
        expected = by_definition(q, k, v, readings if number in (1, 3) else [], number=number)
        assert (found - expected).abs().max() < 1e-5, number


def test_calls_without_image_and_between_two_sequences_are_left_alone():
    shared = sharing(reading(bank()))
    q, k, v = target()
    assert torch.equal(through(shared, q[:, :, :4], k[:, :, :4], v[:, :, :4]), through(None, q[:, :, :4], k[:, :, :4], v[:, :, :4]))
    assert torch.equal(through(shared, q, k[:, :, :5], v[:, :, :5]), through(None, q, k[:, :, :5], v[:, :, :5]))
    assert (through(shared, q, k, v) - through(None, q, k, v)).abs().max() > 1e-2, "none of these was counted"


def test_of_calls_that_look_alike_the_first_is_over_the_image():
    shared = sharing(reading(bank(numbers=(0, 1))), every=2)
    q, k, v = target()
    plain = through(None, q, k, v)
    same = [torch.equal(through(shared, q, k, v), plain) for _ in range(6)]
    assert same == [False, True, False, True, True, True]
    recorded = KeyBank()
    recording = Recording(recorded, ImageCalls(start, 2), IMAGE)
    calls = [target(seed=10 * i) for i in range(4)]
    for given in calls:
        through(recording, *given)
    assert sorted(recorded.entries) == [0, 1]
    assert torch.equal(recorded.entries[1].k, calls[2][1][:, :, TEXT:])


# ---- recording


@pytest.mark.parametrize("skip_reshape", [True, False])
def test_a_reference_leaves_its_image_alone_and_answers_as_ever(skip_reshape):
    recorded = KeyBank(first=1, last=3)
    recording = Recording(recorded, ImageCalls(start), IMAGE)
    for number in range(4):
        q, k, v = target(seed=number)
        assert torch.equal(through(recording, q, k, v, None, skip_reshape), through(None, q, k, v, None, skip_reshape))
        through(recording, q[:, :, :4], k[:, :, :4], v[:, :, :4], None, skip_reshape)
        through(recording, q, k[:, :, :5], v[:, :, :5], None, skip_reshape)
    assert sorted(recorded.entries) == [1, 2]
    for number, entry in recorded.entries.items():
        q, k, v = target(seed=number)
        assert torch.equal(entry.k, k[:, :, TEXT:])
        assert torch.equal(entry.v, v[:, :, TEXT:])
    assert recorded.bytes == 2 * 2 * BATCH * HEADS * IMAGE * CHANNELS * 4


@pytest.mark.parametrize("on_cpu", [True, False])
def test_entries_are_copies(on_cpu):
    recorded = KeyBank(keep_on_cpu=on_cpu)
    q, k, v = target()
    through(Recording(recorded, ImageCalls(start), IMAGE), q, k, v)
    before = k[:, :, TEXT:].clone()
    k.zero_()
    assert torch.equal(recorded.entries[0].k, before)
    assert recorded.entries[0].k.untyped_storage().nbytes() == before.numel() * 4, "no entry keeps the whole sequence alive"


# ---- sizes of pairs


def image_of(x: torch.Tensor) -> torch.Tensor:
    return x[:, :, TEXT:]


def test_sizes_of_pairs():
    x = noise(2, HEADS, 5, CHANNELS)
    found = pair_sizes(x, (0, 2))
    assert found.shape == (HEADS, CHANNELS)
    assert torch.equal(found[:, ::2], found[:, 1::2])
    expected = (x[..., 2].square() + x[..., 3].square()).mean((0, 2)).div(2).sqrt()
    assert torch.allclose(found[:, 2], expected)


def test_sizes_of_pairs_half_a_head_apart():
    """Channels 0 to 3 pair with 4 to 7."""
    x = noise(2, HEADS, 5, CHANNELS)
    found = pair_sizes(x, (0, 2), HALVES)
    assert torch.equal(found[:, :4], found[:, 4:])
    expected = (x[..., 1].square() + x[..., 5].square()).mean((0, 2)).div(2).sqrt()
    assert torch.allclose(found[:, 1], expected)


def test_what_runs_turns_keys_as_its_model_does():
    """Columns of a reference, turned by one angle per pair: by hand, half a head apart."""
    source, angle = bank(), torch.tensor([0.0, 0.4, 0.9, -1.3])
    cos, sin = angle.cos(), angle.sin()
    turns = torch.stack((cos, -sin, sin, cos), -1).unflatten(-1, (2, 2)).expand(1, 1, 4, 4, 2, 2)
    shared = sharing(reading(source, turns={HIGH: turns}))
    seen: list[torch.Tensor] = []

    def attend(q, k, v, mask):
        seen.append(k)
        return q

    with running(replace(active(shared), rotate=partial(rotate_keys, pairing=HALVES))):
        grouped_attention(*target(), None, HEADS, True, attend)
    k = source.entries[0].k[0]
    expected = torch.cat([k[..., :4] * cos - k[..., 4:] * sin, k[..., :4] * sin + k[..., 4:] * cos], -1)
    torch.testing.assert_close(seen[0][0, :, LENGTH:], expected)


def test_adain_of_0_is_the_same_object():
    shared = sharing(reading(bank()), reading(bank(numbers=(3,)), adapt=1.0))
    q, _, _ = target()
    assert shared.adapted(0, q, "q", HEADS, True) is q


@pytest.mark.parametrize("skip_reshape", [True, False])
@pytest.mark.parametrize("which", ["q", "k"])
def test_adain_gives_pairs_the_references_sizes(which, skip_reshape):
    source = bank(2)
    q, k, _ = target()
    x = q if which == "q" else k
    entry = source.entries[0]
    wanted = entry.q_size if which == "q" else entry.k_size

    def adapted(**changes) -> torch.Tensor:
        given = x if skip_reshape else flat(x)
        before = given.clone()
        found = sharing(reading(source, **changes)).adapted(0, given, which, HEADS, skip_reshape)
        assert torch.equal(given, before), "the given tensor may be used elsewhere"
        assert found.shape == given.shape
        return found if skip_reshape else found.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    whole = adapted(adapt=1.0)
    assert torch.equal(whole[:, :, :TEXT], x[:, :, :TEXT]), "text keeps its sizes"
    assert torch.allclose(pair_sizes(image_of(whole), (2,)), wanted.expand(BATCH, -1, -1), rtol=1e-4), "each image for itself"
    ratio = image_of(whole) / image_of(x)
    assert torch.allclose(ratio[..., ::2], ratio[..., 1::2], rtol=1e-3), "a pair keeps its angle"
    half = adapted(adapt=0.5)
    assert torch.allclose(half, (whole + x) / 2, atol=1e-5)
    rows = adapted(adapt=1.0, rows=slice(1, 2))
    assert torch.equal(rows[[0, 2]], x[[0, 2]])
    assert torch.equal(rows[1], whole[1])
    some = adapted(adapt=1.0, covered=SOME_TOKENS)
    assert torch.equal(image_of(some)[:, :, SOME_TOKENS], image_of(whole)[:, :, SOME_TOKENS])
    assert torch.equal(image_of(some)[:, :, ~SOME_TOKENS], image_of(x)[:, :, ~SOME_TOKENS])


def test_adain_reaches_the_attention():
    q, k, v = target()
    source = bank()
    shared = sharing(reading(source, adapt=1.0))
    expected = by_definition(*(shared.adapted(0, x, w, HEADS, True) for x, w in ((q, "q"), (k, "k"))), v, [reading(source)])
    assert (through(shared, q, k, v) - expected).abs().max() < 1e-5


# ---- calls that cannot be told


def in_block(kind: str, length: int = TEXT + IMAGE) -> AttentionCall:
    q, k, v = (noise(1, HEADS, length, CHANNELS, seed=seed) for seed in (1, 2, 3))
    return AttentionCall(q, k, v, None, HEADS, True, 1, rotate_keys, (kind, 0) if kind else None)


def read_of(*kinds: str) -> KeyBank:
    found = KeyBank()
    recording = Recording(found, ImageCalls(start), IMAGE)
    for kind in kinds:
        recording.attends(in_block(kind), {}, None)
    return found


def after(found: KeyBank, *calls: AttentionCall) -> str:
    shared = sharing(Reading(found, torch.ones(CHANNELS)))
    for call in calls:
        shared.attends(call, {}, None)
    return shared.unmatched()


def test_blocks_that_call_and_do_not_read_are_said():
    found = read_of("a", "b")
    assert after(found, in_block("a"), in_block("b")) == ""
    assert after(found, in_block("a")) == "", "a block that is left out reads nothing and is no fault"
    assert after(found) == ""
    assert after(found, in_block("a"), in_block("c", 2)) == ""
    assert after(found, in_block("a"), in_block("b", 2)).startswith("some blocks")
    assert after(found, in_block("a"), in_block("b"), in_block("b")).startswith("some blocks")
    assert after(found, in_block("a", 2), in_block("b", 2)).startswith("no attention call")


def test_without_blocks_a_call_too_few_or_many_is_an_error():
    found = read_of("", "")
    assert after(found, in_block(""), in_block("")) == ""
    assert after(found, in_block("", 2)) == "", "a step whose blocks are all left out reads nothing"
    for calls in (1, 3):
        with pytest.raises(RopeWorksError, match=f"made {calls} calls over the picture where the style reference's made 2"):
            after(found, *[in_block("")] * calls)


@pytest.mark.parametrize("skip_reshape", [True, False])
def test_keys_with_fewer_heads_than_queries_are_read_as_if_repeated(skip_reshape):
    q = noise(1, HEADS, LENGTH, CHANNELS)
    few = [noise(1, 1, LENGTH, CHANNELS, seed=seed) for seed in (1, 2)]
    references = [noise(1, 1, 4, CHANNELS, seed=seed) for seed in (3, 4)]

    def answer(heads: int) -> torch.Tensor:
        repeated, kept = ([x.expand(-1, heads, -1, -1) for x in them] for them in (few, references))
        source = KeyBank()
        source.keep(0, noise(1, HEADS, 4, CHANNELS, seed=5), *kept)

        def attend(q, k, v, mask):
            q, k, v = (x if skip_reshape else x.unflatten(-1, (-1, CHANNELS)).transpose(1, 2) for x in (q, k, v))
            return flat(scaled_dot_product_attention(q, *(x.expand(-1, HEADS, -1, -1) for x in (k, v)), attn_mask=mask))

        given = [x if skip_reshape else flat(x) for x in (q, *repeated)]
        with running(active(sharing(reading(source, adapt=0.5)))):
            return grouped_attention(*given, None, HEADS, skip_reshape, attend)

    assert torch.allclose(answer(1), answer(HEADS), atol=1e-6)
