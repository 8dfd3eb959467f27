from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segmoe.cache import ExpertCache
from segmoe.errors import CheckpointError, ConfigError
from segmoe.events import ExpertEvicted, ExpertKey
from segmoe.manifest import ExpertParameter, Piece, Segment
from segmoe.policies import make_policy

SIZE = 24


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> dict[ExpertKey, Segment]:
    """12 experts of which each holds its own number, at places and addresses that are not round."""
    file = tmp_path_factory.mktemp("experts") / "all"
    file.write_bytes(b"?" * 3 + b"".join(np.full(SIZE // 2, expert, np.uint16).tobytes() for expert in range(12)))
    found = {}
    for expert in range(12):
        part = ExpertParameter(
            name="w",
            dtype=torch.int16,
            shape=(3, 4),
            nbytes=SIZE,
            address=2 * expert % 64,
            pieces=(Piece(file, 3 + expert * SIZE, 10), Piece(file, 13 + expert * SIZE, SIZE - 10)),
        )
        key = ExpertKey("model", expert // 4, expert % 4)
        found[key] = Segment(key=key, parameters=(part,), nbytes=SIZE)
    return found


def holds(cache: ExpertCache, keys: list[ExpertKey], expert: int) -> bool:
    tensor = cache.get(keys[expert])["w"]
    assert tensor.data_ptr() % 64 == 2 * expert % 64
    return bool((tensor == expert).all())


@settings(max_examples=60, deadline=None)
@given(capacity=st.integers(1, 12), accesses=st.lists(st.integers(0, 11), max_size=60), in_bytes=st.booleans())
def test_it_agrees_with_a_plain_lru_and_never_exceeds_its_budget(segments, capacity, accesses, in_bytes) -> None:
    budget = {"capacity_bytes": capacity * SIZE} if in_bytes else {"capacity_experts": capacity}
    cache = ExpertCache(segments, make_policy("lru"), **budget)
    keys = list(segments)
    model: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for step, expert in enumerate(accesses):
        cache.begin(step, 1)
        assert holds(cache, keys, expert)
        hits += expert in model
        model[expert] = None
        model.move_to_end(expert)
        if len(model) > capacity:
            model.popitem(last=False)
        cache.check_integrity()
        assert {keys[e] for e in model} == {key for key in keys if key in cache}
    assert (cache.counters.hits, cache.counters.misses) == (hits, len(accesses) - hits)
    cache.close()


@settings(max_examples=40, deadline=None)
@given(accesses=st.lists(st.integers(0, 11), min_size=1, max_size=40), pinned=st.integers(0, 11))
def test_a_pinned_expert_stays(segments, accesses, pinned) -> None:
    cache = ExpertCache(segments, make_policy("lru"), capacity_experts=2)
    keys = list(segments)
    cache.get(keys[pinned])
    cache.pin(keys[pinned])
    for expert in accesses:
        assert holds(cache, keys, expert)
        assert keys[pinned] in cache
        cache.check_integrity()
    cache.unpin(keys[pinned])
    cache.close()


def test_when_all_are_pinned_the_next_load_raises(segments) -> None:
    cache = ExpertCache(segments, make_policy("lru"), capacity_experts=1)
    keys = list(segments)
    cache.get(keys[0])
    cache.pin(keys[0])
    with pytest.raises(ConfigError, match="all 1 experts in memory are pinned"):
        cache.get(keys[1])
    assert holds(cache, keys, 0)


def test_an_eviction_says_why_and_who_was_next(segments) -> None:
    events: list = []
    cache = ExpertCache(segments, make_policy("lru"), capacity_experts=2, emit=events.append)
    keys = list(segments)
    for step, expert in enumerate((0, 1, 2)):
        cache.begin(step, 1)
        cache.get(keys[expert])
    (evicted,) = [event for event in events if isinstance(event, ExpertEvicted)]
    assert (evicted.key, evicted.idle_steps, evicted.policy_score) == (keys[0], 2, 0.0)
    assert evicted.next_candidate == keys[1]


@pytest.mark.parametrize("budget", [{"capacity_experts": 0}, {"capacity_experts": -1}, {"capacity_bytes": SIZE - 1}])
def test_a_budget_that_holds_no_expert_is_refused(segments, budget) -> None:
    with pytest.raises(ConfigError, match="holds no"):
        ExpertCache(segments, make_policy("lru"), **budget)


def test_a_file_that_shrinks_while_in_use_is_told_and_leaves_the_cache_whole(tmp_path: Path) -> None:
    file = tmp_path / "short"
    file.write_bytes(b"x" * 10)
    key = ExpertKey("model", 0, 0)
    part = ExpertParameter(
        name="w", dtype=torch.int16, shape=(3, 4), nbytes=SIZE, address=0, pieces=(Piece(file, 0, SIZE),)
    )
    cache = ExpertCache(
        {key: Segment(key=key, parameters=(part,), nbytes=SIZE)}, make_policy("lru"), capacity_experts=1
    )
    with pytest.raises(CheckpointError, match="ended 14 bytes early"):
        cache.get(key)
    cache.check_integrity()
    assert len(cache) == 0


def test_an_unknown_policy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no policy 'best'; choose one of .*lru"):
        make_policy("best")
