"""What a layer says it is about to ask for: the same loads and evictions with and without loader threads."""

import threading
import time
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segmoe.cache import WAITING_NS, ExpertCache
from segmoe.errors import CheckpointError, ConfigError
from segmoe.events import ExpertEvicted, ExpertKey, ExpertLoaded, ExpertWasted
from segmoe.manifest import ExpertParameter, Piece, Segment
from segmoe.policies import POLICIES, make_policy
from segmoe.policies.rules import PER_LAYER
from segmoe.slots import Slot, Slots

SIZE, COUNT = 24, 12
EARLY = 2
PASSES = st.lists(st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=8, unique=True).map(sorted), max_size=12)


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> dict[ExpertKey, Segment]:
    file = tmp_path_factory.mktemp("experts") / "all"
    file.write_bytes(b"".join(np.full(SIZE // 2, expert, np.uint16).tobytes() for expert in range(COUNT)))
    found = {}
    for expert in range(COUNT):
        key = ExpertKey("model", 0, expert)
        pieces = (Piece(file, expert * SIZE + 10, SIZE - 10), Piece(file, expert * SIZE, 10))  # neighbours, swapped
        part = ExpertParameter(
            name="w", dtype=torch.int16, shape=(3, 4), nbytes=SIZE, address=2 * expert, pieces=pieces
        )
        found[key] = Segment(key=key, parameters=(part,), nbytes=SIZE)
    return found


def tape(segments, passes, capacity, slots, then=(), nearer=()) -> tuple[list, ExpertCache]:
    """Play the passes as a layer does; return who was loaded and evicted, each in its order.

    `then` are guesses that come with a layer, `nearer` those that take their place when its experts are computed.
    """
    loads, evictions = [], []

    def note(event) -> None:
        if isinstance(event, ExpertWasted):
            return
        (loads if isinstance(event, ExpertLoaded) else evictions).append(event.key.expert)
        expert = event.key.expert
        assert loads.count(expert) - evictions.count(expert) in (0, 1), "nobody leaves who was not there"

    cache = ExpertCache(segments, make_policy("lru"), capacity_experts=capacity, slots=slots, early=EARLY, emit=note)
    keys = list(segments)
    for step, experts in enumerate(passes):
        cache.begin(step, 1)
        guessed = then[step] if step < len(then) else ()
        cache.expect([keys[expert] for expert in experts], [keys[expert] for expert in guessed])
        cache.check_integrity()
        stay, held = cache.has_expected, {}
        for expert in experts:
            held[expert] = cache.get(keys[expert])
            assert (held[expert]["w"] == expert).all()
            cache.check_integrity()
        assert len(cache) + len(cache._early) <= capacity + (EARLY if slots.threads else 0)
        if stay:
            assert all((held[expert]["w"] == expert).all() for expert in experts)
        if step < len(nearer):
            cache.foresee([keys[expert] for expert in nearer[step]])
            cache.check_integrity()
    return [loads, evictions], cache


def plain(passes, capacity: int) -> tuple[list, int]:
    """The same in a few lines that share nothing with the cache."""
    resident: OrderedDict[int, None] = OrderedDict()
    loads, evictions, hits = [], [], 0
    for experts in passes:
        for place, expert in enumerate(experts):
            if expert in resident:
                hits += 1
            else:
                loads.append(expert)
                if len(resident) == capacity:
                    later = experts[place + 1 :]
                    free = [other for other in resident if other not in later]
                    leaves = free[0] if free else max(other for other in resident if other in later)
                    evictions.append(leaves)
                    del resident[leaves]
            resident[expert] = None
            resident.move_to_end(expert)
    return [loads, evictions], hits


@settings(max_examples=80, deadline=None)
@given(passes=PASSES, capacity=st.integers(1, COUNT))
def test_it_decides_as_a_plain_lru_that_keeps_what_the_layer_still_needs(segments, passes, capacity) -> None:
    expected, hits = plain(passes, capacity)
    found, cache = tape(segments, passes, capacity, Slots())
    assert found == expected
    assert cache.counters.hits == hits


@settings(max_examples=40, deadline=None)
@given(passes=PASSES, capacity=st.integers(1, COUNT), threads=st.integers(1, 3), staged=st.booleans())
def test_threads_and_staging_change_no_decision_and_no_byte(segments, passes, capacity, threads, staged) -> None:
    expected, hits = plain(passes, capacity)
    slots = Slots(threads=threads, staged=staged)
    found, cache = tape(segments, passes, capacity, slots)
    assert found == expected
    assert cache.counters.hits == hits
    cache.close()


@settings(max_examples=80, deadline=None)
@given(
    passes=PASSES,
    capacity=st.integers(1, COUNT),
    threads=st.integers(1, 3),
    policy=st.sampled_from(sorted(POLICIES)),
    per_layer=st.sampled_from(("", PER_LAYER)),
    pinned=st.integers(0, COUNT),  # COUNT: none
)
def test_threads_change_no_victim_of_any_policy(segments, passes, capacity, threads, policy, per_layer, pinned) -> None:
    keys = [ExpertKey("model", expert // 4, expert % 4) for expert in range(COUNT)]
    placed = {key: replace(segment, key=key) for key, segment in zip(keys, segments.values(), strict=True)}
    trust = {key: 1 / (1 + place) for place, key in enumerate(keys)}
    told = []
    for slots in (Slots(), Slots(threads=threads)):
        events: list = []
        rule = make_policy(policy + per_layer, trust)
        cache = ExpertCache(placed, rule, capacity_experts=capacity, slots=slots, early=EARLY, emit=events.append)
        for step, experts in enumerate(passes):
            cache.begin(step, 1 + step % 3)
            cache.expect([keys[expert] for expert in experts])
            for expert in experts:
                assert (cache.get(keys[expert])["w"] == expert).all()
            if pinned in experts and keys[pinned] in cache and capacity > 1 and not cache._pins:
                cache.pin(keys[pinned])
        told.append([event for event in events if isinstance(event, ExpertEvicted)])
        cache.close()
    assert told[0] == told[1]


@settings(max_examples=60, deadline=None)
@given(passes=PASSES, then=PASSES, nearer=PASSES, capacity=st.integers(1, COUNT), threads=st.integers(0, 3))
def test_guesses_right_or_wrong_change_no_decision_and_no_byte(
    segments, passes, then, nearer, capacity, threads
) -> None:
    expected, hits = plain(passes, capacity)
    found, cache = tape(segments, passes, capacity, Slots(threads=threads), then, nearer)
    assert found == expected
    assert cache.counters.hits == hits
    assert cache.counters.bytes_read == SIZE * (cache.counters.loads + cache.counters.wasted)
    cache.close()


@settings(max_examples=40, deadline=None)
@given(passes=PASSES, capacity=st.integers(1, COUNT), seed=st.integers(0, 99))
def test_a_layer_may_ask_in_another_order_or_for_fewer(segments, passes, capacity, seed) -> None:
    """As after an error in the middle of a layer, or in a family that does not count upwards."""
    cache = ExpertCache(segments, make_policy("lru"), capacity_experts=capacity, slots=Slots(threads=2))
    keys, order = list(segments), np.random.default_rng(seed)
    for experts in passes:
        cache.expect([keys[expert] for expert in experts])
        for expert in order.permutation(experts)[: len(experts) - 1]:
            assert (cache.get(keys[expert])["w"] == expert).all()
            cache.check_integrity()
    cache.close()


def test_a_pinned_expert_is_never_the_one_that_leaves(segments) -> None:
    keys = list(segments)
    cache = ExpertCache(segments, make_policy("lru"), capacity_experts=2)
    cache.get(keys[5])
    cache.pin(keys[5])
    cache.expect(keys[:6])
    for key in keys[:6]:
        cache.get(key)
        assert keys[5] in cache
    (other,) = (key for key in keys if key in cache and key != keys[5])
    cache.pin(other)
    with pytest.raises(ConfigError, match="all 2 experts in memory are pinned"):
        cache.get(keys[0])


def test_what_comes_next_is_read_before_somebody_left_for_it(segments, monkeypatch: pytest.MonkeyPatch) -> None:
    slots, begun = Slots(threads=1), []
    start = slots.start
    monkeypatch.setattr(slots, "start", lambda segment: begun.append(segment.key.expert) or start(segment))
    cache = ExpertCache(segments, make_policy("lru"), capacity_experts=3, slots=slots, early=EARLY)
    keys = list(segments)
    cache.expect(keys)
    assert begun == list(range(3 + EARLY)) and len(cache) == 3
    cache.get(keys[0])
    assert begun == list(range(3 + EARLY)), "nobody has left yet"
    cache.get(keys[1])
    assert begun == list(range(4 + EARLY)) and keys[0] not in cache
    let_it_read(cache)
    cache.expect(keys[:1])
    assert (cache.get(keys[0])["w"] == 0).all()
    assert len(begun) == 7 == cache.counters.misses + cache.counters.wasted, "what was read early for nobody is no load"
    cache.check_integrity()
    cache.close()


def test_a_guess_is_read_when_all_else_was_begun_and_told_as_prefetched_or_wasted(segments, monkeypatch) -> None:
    slots, begun, events = Slots(threads=1), [], []
    start = slots.start
    monkeypatch.setattr(slots, "start", lambda segment: begun.append(segment.key.expert) or start(segment))
    cache = ExpertCache(segments, make_policy("lru"), capacity_experts=2, slots=slots, early=EARLY, emit=events.append)
    keys = list(segments)
    cache.expect(keys[:4], then=keys[6:9])
    assert begun == [0, 1, 2, 3], "the layer's own come first"
    for key in keys[:4]:
        cache.get(key)
    assert begun == [0, 1, 2, 3, 6, 7]
    assert len(cache) == 2 and keys[6] not in cache, "a guess is in no budget"
    let_it_read(cache)
    events.clear()
    cache.expect(keys[7:9])
    for key in keys[7:9]:
        assert (cache.get(key)["w"] == key.expert).all()
    told = [(event.key.expert, event.cause) for event in events if isinstance(event, ExpertLoaded)]
    assert told == [(7, "prefetch"), (8, "demand")]
    (wasted,) = (event for event in events if isinstance(event, ExpertWasted))
    assert wasted.key == keys[6] and wasted.bytes == SIZE
    counters = cache.counters
    assert (counters.hits, counters.misses, counters.loads) == (0, 6, 6)
    assert (counters.prefetched, counters.wasted, counters.bytes_read) == (1, 1, 7 * SIZE)
    cache.close()


def test_nobody_waits_for_a_wrong_guess_and_nothing_is_read_into_its_memory(segments, monkeypatch) -> None:
    slots, go_on = Slots(threads=1), threading.Event()
    fill = slots._fill

    def slowly(slot: Slot, behind: object) -> int:
        if slot.segment.key.expert >= 6:
            assert go_on.wait(60)
        return fill(slot, behind)

    monkeypatch.setattr(slots, "_fill", slowly)
    cache = ExpertCache(segments, make_policy("lru"), capacity_experts=2, slots=slots, early=EARLY)
    keys = list(segments)
    cache.expect(keys[:1], then=keys[6:8])
    cache.get(keys[0])
    begun = cache._early._wanted[keys[6]]
    while not begun.loading.running():
        time.sleep(0.001)
    cache.expect(keys[:1])
    assert (cache.get(keys[0])["w"] == 0).all(), "while a thread is at the guess"
    assert len(cache._early) == 1 and begun.buffer is not None, "the one behind it was never begun"
    cache.expect(keys[:1], then=keys[8:9])
    cache.get(keys[0])
    cache.expect(keys[8:9])
    go_on.set()
    assert (cache.get(keys[8])["w"] == 8).all()
    assert cache.counters.prefetched == 0, "no thread had been at it when it was asked for"
    cache.expect(keys[1:2])
    assert (cache.get(keys[1])["w"] == 1).all()
    cache.close()
    assert cache.counters.wasted == 1 and len(cache._early) == 0 and begun.buffer is None


def test_what_is_there_can_be_had_before_its_turn_while_another_is_read(segments, monkeypatch) -> None:
    slots, go_on = Slots(threads=1), threading.Event()
    fill = slots._fill
    cache = ExpertCache(segments, make_policy("lru"), capacity_experts=3, slots=slots, early=EARLY)
    there, missing, lost, other = list(segments)[:4]
    cache.get(there)

    def slowly(slot: Slot, behind: object) -> int:
        assert go_on.wait(60) and slot.segment.key != lost
        return fill(slot, behind)

    monkeypatch.setattr(slots, "_fill", slowly)
    cache.expect([missing, there, lost])
    assert cache.is_awaited(missing) and not cache.has_expected and cache.at_hand(missing) is None
    assert not cache.is_awaited(there) and (cache.at_hand(there)["w"] == there.expert).all()
    assert not cache.is_awaited(other) and cache.at_hand(other) is None, "nobody expects it"
    go_on.set()
    assert (cache.get(missing)["w"] == missing.expert).all() and not cache.is_awaited(missing)
    assert (cache.get(there)["w"] == there.expert).all()
    while cache.is_awaited(lost):
        time.sleep(0.001)
    assert cache.at_hand(lost) is None, "its turn tells why"
    with pytest.raises(AssertionError):
        cache.get(lost)
    cache.expect([there, missing])
    assert cache.has_expected
    cache.close()


def test_who_leaves_before_it_is_computed_stays_beside_the_budget_until_others_are_expected(segments) -> None:
    events: list = []
    slots = Slots(threads=1)
    cache = ExpertCache(segments, make_policy("lru"), capacity_experts=2, slots=slots, early=EARLY, emit=events.append)
    keys = list(segments)
    for key in keys[:2]:
        cache.get(key)
    cache.expect(keys[:4])
    assert [event.key for event in events if isinstance(event, ExpertEvicted)] == keys[:2]
    assert len(cache) == 2 and len(cache._early) == EARLY and keys[0] not in cache
    let_it_read(cache)
    assert cache.has_expected
    held = [cache.get(key)["w"] for key in keys[:4]]
    assert [int(w[0, 0]) for w in held] == [0, 1, 2, 3] and len(cache._early) == EARLY
    cache.expect(keys[:1])
    assert (cache.get(keys[0])["w"] == 0).all() and cache.counters.misses == 5, "it had left"
    cache.check_integrity()
    cache.expect(keys[:5])
    let_it_read(cache)
    assert not cache.has_expected, "there is room for two beside the budget, and three must leave"
    assert [int(cache.get(key)["w"][0, 0]) for key in keys[:5]] == [0, 1, 2, 3, 4]
    cache.close()


def test_nobody_leaves_so_before_those_in_front_are_there_so_that_loads_are_told_in_order(
    segments, monkeypatch
) -> None:
    slots, go_on, events = Slots(threads=2), threading.Event(), []
    fill = slots._fill

    def slowly(slot: Slot, behind: object) -> int:
        assert slot.segment.key.expert or go_on.wait(60)
        return fill(slot, behind)

    monkeypatch.setattr(slots, "_fill", slowly)
    cache = ExpertCache(segments, make_policy("random"), capacity_experts=2, slots=slots, early=4, emit=events.append)
    keys = list(segments)
    for _ in range(20):
        go_on.clear()
        cache.expect(keys[:6])
        for slot in list(cache._ahead.values())[1:]:
            if slot.loading is not None:
                slot.loading.result()
        cache.foresee(())  # decides what can be decided
        go_on.set()
        for key in keys[:6]:
            assert (cache.get(key)["w"] == key.expert).all()
        told = [event.key.expert for event in events if isinstance(event, ExpertLoaded)]
        assert told == sorted(told)
        cache.expect(keys[8:10])
        for key in keys[8:10]:
            cache.get(key)
        events.clear()
    cache.close()


def test_where_layers_wait_its_place_goes_to_the_next_as_soon_as_it_is_computed(segments) -> None:
    cache = ExpertCache(segments, make_policy("lru"), capacity_experts=2, slots=Slots(threads=1), early=EARLY)
    cache._waited_lately_ns = 2 * WAITING_NS
    keys = list(segments)
    for key in keys[:2]:
        cache.get(key)
    cache.expect(keys[:3], then=keys[8:10])
    let_it_read(cache)
    assert not cache.has_expected and list(cache._early._wanted) == keys[8:9]
    for key in keys[:2]:
        assert (cache.get(key)["w"] == key.expert).all()
    assert list(cache._early._wanted) == keys[8:10]
    cache.close()


def test_a_nearer_guess_takes_the_place_of_those_that_nobody_has_begun_to_read(segments, monkeypatch) -> None:
    slots, go_on = Slots(threads=1), threading.Event()
    fill = slots._fill
    monkeypatch.setattr(slots, "_fill", lambda *args: go_on.wait(60) and fill(*args))
    events: list = []
    cache = ExpertCache(segments, make_policy("lru"), capacity_experts=4, slots=slots, early=EARLY, emit=events.append)
    keys = list(segments)
    cache.foresee(keys[6:8])
    while not cache._early._wanted[keys[6]].loading.running():
        time.sleep(0.001)
    cache.foresee(keys[8:10])
    assert list(cache._early._wanted) == [keys[6], keys[8]], "a thread is at 6, nobody was at 7, and there are two"
    go_on.set()
    let_it_read(cache)
    cache.expect([keys[6], keys[8]])
    for expert in (6, 8):
        assert (cache.get(keys[expert])["w"] == expert).all()
    cache.close()
    assert [event.cause for event in events] == ["prefetch", "prefetch"]
    assert (cache.counters.misses, cache.counters.prefetched, cache.counters.wasted) == (2, 2, 0)


def test_guesses_are_asked_for_once_layers_wait_and_no_more_once_they_do_not(segments, monkeypatch) -> None:
    slots = Slots(threads=1)
    cache = ExpertCache(segments, make_policy("lru"), capacity_experts=4, slots=slots)
    keys, waited_ns = list(segments), 0
    finish = slots.finish
    monkeypatch.setattr(slots, "finish", lambda slot: finish(slot)._replace(waited_ns=waited_ns))

    def layers(count: int) -> None:
        for layer in range(count):
            picked = keys[:3] if layer % 2 else keys[5:8]
            cache.expect(picked)
            for key in picked:
                cache.get(key)

    layers(40)
    assert not cache.can_prefetch, "a guess would take time, and nobody waits for what it could bring"
    waited_ns = WAITING_NS
    layers(20)
    assert cache.can_prefetch, "each layer misses two at least"
    waited_ns = WAITING_NS // 4
    layers(60)
    assert not cache.can_prefetch, "three of them are less"
    cache.close()


def let_it_read(cache: ExpertCache) -> None:
    """Until threads have nothing to do."""
    for slot in (*cache._early._wanted.values(), *cache._ahead.values()):
        if slot.loading is not None:
            slot.loading.result()


def test_without_threads_nobody_reads_ahead(segments) -> None:
    cache = ExpertCache(segments, make_policy("lru"), capacity_experts=2)
    assert not cache.can_prefetch
    cache.expect(list(segments)[:1], then=list(segments)[1:])
    assert len(cache) == 0 and cache.counters.bytes_read == 0


def test_an_early_read_that_fails_is_told_to_those_who_ask_for_it(segments, tmp_path) -> None:
    keys = list(segments)
    part = segments[keys[2]].parameters[0]
    lost = replace(part, pieces=(Piece(tmp_path / "gone", 0, SIZE),))
    segments = {**segments, keys[2]: replace(segments[keys[2]], parameters=(lost,))}
    cache = ExpertCache(segments, make_policy("lru"), capacity_experts=1, slots=Slots(threads=1))
    cache.expect(keys[:3])
    assert (cache.get(keys[0])["w"] == 0).all()
    cache.expect(keys[3:4])
    assert (cache.get(keys[3])["w"] == 3).all()
    cache.expect(keys[1:3])
    assert (cache.get(keys[1])["w"] == 1).all()
    with pytest.raises(CheckpointError, match="gone cannot be read"):
        cache.get(keys[2])
    cache.check_integrity()
    cache.close()


def test_an_early_read_that_fails_for_nobody_is_forgotten(segments, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = Slots(threads=1)
    fill = slots._fill
    monkeypatch.setattr(
        slots, "_fill", lambda slot, behind: 1 // 0 if slot.segment.key.expert == 2 else fill(slot, behind)
    )
    cache = ExpertCache(segments, make_policy("lru"), capacity_experts=1, slots=slots)
    keys = list(segments)
    for layer in (keys[:3], keys[3:4], keys[4:5]):
        cache.expect(layer)
        cache.check_integrity()
        cache.get(layer[0])
    cache.close()


@pytest.mark.parametrize("threads", [0, 2])
def test_an_expert_that_cannot_be_read_raises_at_its_turn_and_the_rest_stays_whole(segments, tmp_path, threads) -> None:
    short = tmp_path / "short"
    short.write_bytes(b"x" * 10)
    keys = list(segments)
    part = segments[keys[1]].parameters[0]
    lost = replace(segments[keys[1]], parameters=(replace(part, pieces=(Piece(short, 0, SIZE),)),))
    cache = ExpertCache(
        {**segments, keys[1]: lost}, make_policy("lru"), capacity_experts=4, slots=Slots(threads=threads)
    )
    cache.expect(keys[:3])
    assert (cache.get(keys[0])["w"] == 0).all()
    with pytest.raises(CheckpointError, match="ended 14 bytes early"):
        cache.get(keys[1])
    cache.check_integrity()
    cache.expect(keys[2:4])
    assert (cache.get(keys[2])["w"] == 2).all()
    cache.check_integrity()
    assert keys[1] not in cache
    cache.close()


def test_ctrl_c_while_an_expert_is_read_leaves_nothing_half_done(segments, monkeypatch: pytest.MonkeyPatch) -> None:
    import segmoe.reader

    preadv, pressed = segmoe.reader.os.preadv, []

    def interrupted(*args):
        if not pressed:
            pressed.append(True)
            raise KeyboardInterrupt
        return preadv(*args)

    monkeypatch.setattr(segmoe.reader.os, "preadv", interrupted)
    cache = ExpertCache(segments, make_policy("lru"), capacity_experts=2)
    key = next(iter(segments))
    with pytest.raises(KeyboardInterrupt):
        cache.get(key)
    cache.check_integrity()
    assert key not in cache
    assert (cache.get(key)["w"] == 0).all()
    assert (cache.counters.misses, cache.counters.loads, cache.counters.hits) == (1, 1, 0)


def test_ctrl_c_while_a_thread_reads_leaves_the_expert_to_the_next_who_asks(segments) -> None:
    cache = ExpertCache(segments, make_policy("lru"), capacity_experts=2, slots=Slots(threads=1))
    key = next(iter(segments))
    cache.expect([key])
    loading = cache._resident[key].loading
    assert loading is not None
    loading.result()
    result, loading.result = loading.result, lambda: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        cache.get(key)
    loading.result = result
    cache.check_integrity()
    assert (cache.get(key)["w"] == 0).all()
    assert cache.counters.loads == 1
    cache.close()


def test_waiting_is_told_apart_from_reading(segments) -> None:
    events: list = []
    cache = ExpertCache(segments, make_policy("lru"), slots=Slots(threads=1), emit=events.append)
    cache.expect(list(segments))
    for slot in list(cache._resident.values()):
        slot.loading.result()  # all are read before anyone asks
    for key in segments:
        cache.get(key)
    assert len(events) == COUNT
    assert sum(event.waited_ns for event in events) < sum(event.read_ns for event in events)
    cache.close()


def test_neighbours_in_a_file_are_one_read(segments, monkeypatch: pytest.MonkeyPatch) -> None:
    import segmoe.reader

    calls = []
    preadv = segmoe.reader.os.preadv
    monkeypatch.setattr(segmoe.reader.os, "preadv", lambda *args: calls.append(args) or preadv(*args))
    cache = ExpertCache(segments, make_policy("lru"))
    assert (cache.get(next(iter(segments)))["w"] == 0).all()
    assert len(calls) == 1


def test_threads_below_zero_are_refused() -> None:
    with pytest.raises(ConfigError, match="-1 loader threads"):
        Slots(threads=-1)


def test_when_the_layer_needs_all_that_is_in_memory_the_last_needed_leaves_and_the_reason_is_told(segments) -> None:
    events: list = []
    cache = ExpertCache(segments, make_policy("lru"), capacity_experts=2, emit=events.append)
    keys = list(segments)
    for layer in (keys[3:5], [keys[0], keys[3], keys[4]]):
        cache.expect(layer)
        for key in layer:
            cache.get(key)
    evicted = [event for event in events if isinstance(event, ExpertEvicted)]
    assert evicted[0].key == keys[4]
    assert [event.reason for event in evicted] == ["layer", "capacity"]
