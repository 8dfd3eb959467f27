"""Each policy against what its name promises, computed afresh from the whole history at every eviction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segmoe.cache import ExpertCache
from segmoe.errors import ConfigError
from segmoe.events import ExpertEvicted, ExpertKey
from segmoe.manifest import ExpertParameter, Piece, Segment
from segmoe.policies import DEFAULT_POLICY, POLICIES, Policy, Victim, make_policy, make_rule
from segmoe.slots import Slots

KEYS = [ExpertKey("model", layer, expert) for layer in range(3) for expert in range(4)]
TRUST = {key: 0.05 + 0.9 * (7 * number % 12) / 12 for number, key in enumerate(KEYS) if number % 5}
MEDIAN = sorted(TRUST.values())[len(TRUST) // 2]
NAMES = [*POLICIES, *(f"{name}-per-layer" for name in POLICIES)]
HALF_LIFE = 16


class Use(NamedTuple):
    step: int
    clock: int  # tokens so far
    key: ExpertKey


class Run:
    """A cache in miniature: who is resident, and the history that the references judge by."""

    def __init__(self, policy: Policy, capacity: int) -> None:
        self.policy, self.capacity = policy, capacity
        self.resident: list[ExpertKey] = []
        self.history: list[Use] = []
        self.loaded_at: dict[ExpertKey, int] = {}  # index into the history
        self.victims: list[Victim] = []
        self.step, self.clock = -1, 0

    def __call__(
        self,
        passes: list[tuple[int, list[int]]],
        *,
        pinned: Container[ExpertKey] = (),
        check: Callable[[Run, Victim, ExpertKey], None] = lambda run, victim, coming: None,
    ) -> Run:
        for tokens, experts in passes:
            step = self.step = self.step + 1
            self.clock += tokens
            self.policy.begin(step, tokens)
            for expert in experts:
                key = KEYS[expert]
                if key not in self.resident:
                    if len(self.resident) == self.capacity:
                        victim = self.policy.victim(pinned, key)
                        if victim is None:
                            assert all(one in pinned for one in self.resident)
                            continue
                        check(self, victim, key)
                        self.victims.append(victim)
                        self.policy.forget(victim.key)
                        self.resident.remove(victim.key)
                    self.resident.append(key)
                    self.loaded_at[key] = len(self.history)
                self.policy.touch(key)
                self.history.append(Use(step, self.clock, key))
        return self

    def uses(self, key: ExpertKey, since: int = 0) -> dict[int, int]:
        """Step -> clock of the passes that used it."""
        return {use.step: use.clock for use in self.history[since:] if use.key == key}

    def last(self, key: ExpertKey) -> int:
        return max(index for index, use in enumerate(self.history) if use.key == key)


def decayed(run: Run, key: ExpertKey) -> float:
    return sum(0.5 ** ((run.clock - clock) / HALF_LIFE) for clock in run.uses(key).values())


REFERENCES: dict[str, Callable[[Run, ExpertKey, int], float]] = {
    "lru": lambda run, key, step: run.history[run.last(key)].step,
    "lfu": lambda run, key, step: len(run.uses(key, since=run.loaded_at[key])),
    "use-rate": lambda run, key, step: decayed(run, key),
    "trust": lambda run, key, step: decayed(run, key) * TRUST.get(key, MEDIAN),
    "recency-trust": lambda run, key, step: (
        -(0.4 * (step - run.history[run.last(key)].step) + 0.6 * (1 - TRUST.get(key, MEDIAN)))
    ),
}

passes = st.lists(
    st.tuples(st.integers(1, 40), st.lists(st.integers(0, 11), min_size=1, max_size=6)), min_size=1, max_size=30
)


def build(name: str) -> Policy:
    return make_policy(name, TRUST if make_rule(name).uses_trust else None)


@pytest.mark.parametrize("per_layer", ["", "-per-layer"])
@pytest.mark.parametrize("name", REFERENCES)
@settings(max_examples=60, deadline=None)
@given(passes=passes, capacity=st.integers(1, 11), pinned=st.sets(st.sampled_from(KEYS), max_size=3))
def test_the_one_that_leaves_is_the_one_that_its_definition_names(name, per_layer, passes, capacity, pinned) -> None:
    reference = REFERENCES[name]

    def check(run: Run, victim: Victim, coming: ExpertKey) -> None:
        free = [key for key in run.resident if key not in pinned]
        if per_layer:
            held = Counter(key.layer for key in run.resident)
            held[coming.layer] += held[coming.layer] > 0
            most = max(held[key.layer] for key in free)
            layers = {key.layer for key in free if held[key.layer] == most}
            layer = coming.layer if coming.layer in layers else victim.key.layer
            assert layer in layers
            free = [key for key in free if key.layer == layer]
        scores = {key: reference(run, key, run.step) for key in free}
        assert scores[victim.key] == pytest.approx(min(scores.values()), rel=1e-9, abs=1e-30)
        tied = [key for key in free if scores[key] == scores[victim.key]]
        assert run.last(victim.key) == min(run.last(key) for key in tied)
        assert victim.score == pytest.approx(scores[victim.key], rel=1e-6)
        rest = {key: scores[key] for key in free if key != victim.key}
        if rest:
            assert rest[victim.next_candidate] == pytest.approx(min(rest.values()), rel=1e-9, abs=1e-30)
        else:
            assert victim.next_candidate is None
        assert victim.trust == (TRUST.get(victim.key, MEDIAN) if make_rule(name).uses_trust else None)

    Run(build(name + per_layer), capacity)(passes, pinned=pinned, check=check)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30, deadline=None)
@given(passes=passes, capacity=st.integers(1, 11), asked=st.sampled_from([(), KEYS[:5], KEYS]))
def test_same_history_same_decisions_and_asking_changes_none(name, passes, capacity, asked) -> None:
    def ask(run: Run, victim: Victim, coming: ExpertKey) -> None:
        run.policy.victim(asked, coming)
        assert run.policy.victim((), coming) == victim

    assert Run(build(name), capacity)(passes).victims == Run(build(name), capacity)(passes, check=ask).victims


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30, deadline=None)
@given(first=passes, second=passes, capacity=st.integers(1, 11))
def test_a_policy_goes_on_from_its_state(name, first, second, capacity) -> None:
    run = Run(build(name), capacity)(first)
    restored = build(name)
    restored.restore(run.policy.state())
    before = len(run.victims)
    other = Run(restored, capacity)
    other.resident, other.history = list(run.resident), list(run.history)
    other.step, other.clock = run.step, run.clock
    assert other(second).victims == run(second).victims[before:]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30, deadline=None)
@given(passes=passes, capacity=st.integers(1, 11), pinned=st.sets(st.sampled_from(KEYS)))
def test_a_pinned_expert_never_leaves(name, passes, capacity, pinned) -> None:
    run = Run(build(name), capacity)(passes, pinned=pinned)
    assert not {victim.key for victim in run.victims} & pinned


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> dict[ExpertKey, Segment]:
    """The experts of KEYS, each holding its own number; those of layer 2 are half as big."""
    found = {}
    for number, key in enumerate(KEYS):
        file: Path = tmp_path_factory.mktemp("experts") / str(number)
        size = 8 if key.layer == 2 else 16
        file.write_bytes(np.full(size // 2, number, np.int16).tobytes())
        part = ExpertParameter(
            name="w",
            dtype=torch.int16,
            shape=(size // 2,),
            nbytes=size,
            address=0,
            pieces=(Piece(file, 0, size),),
        )
        found[key] = Segment(key=key, parameters=(part,), nbytes=size)
    return found


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(passes=passes, budget=st.integers(1, 11), in_bytes=st.booleans(), threads=st.integers(0, 2))
def test_a_cache_stays_whole_and_within_its_budget(segments, name, passes, budget, in_bytes, threads) -> None:
    events: list = []
    limit = {"capacity_bytes": 16 * budget} if in_bytes else {"capacity_experts": budget}
    cache = ExpertCache(segments, build(name), **limit, slots=Slots(threads=threads), emit=events.append)
    for step, (tokens, experts) in enumerate(passes):
        cache.begin(step, tokens)
        for _, group in groupby(sorted(set(experts)), lambda expert: KEYS[expert].layer):
            layer = list(group)
            cache.expect([KEYS[expert] for expert in layer])
            for expert in layer:
                assert (cache.get(KEYS[expert])["w"] == expert).all()
                cache.check_integrity()
                resident = [key for key in KEYS if key in cache]
                assert len(resident) <= budget or in_bytes
                assert sum(segments[key].nbytes for key in resident) <= 16 * budget
    evictions = [event for event in events if isinstance(event, ExpertEvicted) and event.reason == "capacity"]
    assert all((event.trust is None) != make_rule(name).uses_trust for event in evictions)
    cache.close()


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("-per-layer")])
@settings(max_examples=30, deadline=None)
@given(passes=passes)
def test_layers_that_are_used_alike_hold_alike(name, passes) -> None:
    """Once each layer has asked for as many as its share, none holds more."""
    run = Run(build(name), capacity=6)
    run([*passes, *[(1, list(range(12)))] * 2])
    assert set(Counter(key.layer for key in run.resident).values()) == {2}


def test_random_evicts_each_resident_equally_often() -> None:
    """Chi-squared over the age order of the victims, 8 residents: 7 degrees of freedom, 99.9% quantile 24.3."""
    policy = make_policy("random")
    keys = [ExpertKey("model", 0, expert) for expert in range(4000)]
    resident: list[ExpertKey] = []
    ages: Counter[int] = Counter()
    for step, key in enumerate(keys):
        policy.begin(step, 1)
        if len(resident) == 8:
            victim = policy.victim(())
            assert victim is not None
            ages[resident.index(victim.key)] += 1
            policy.forget(victim.key)
            resident.remove(victim.key)
        policy.touch(key)
        resident.append(key)
        policy.touch(resident[step % len(resident)])  # uses must not matter
    expected = sum(ages.values()) / 8
    assert sum((ages[age] - expected) ** 2 / expected for age in range(8)) < 24.3


def test_the_use_rate_forgets_what_was_popular_long_ago() -> None:
    """A frequency keeps yesterday's favourite for ever; a rate lets it go after some half-lives."""
    passes = [(1, [0])] * 50 + [(1, [1, 2])] * 5 + [(8 * HALF_LIFE, [1, 2]), (1, [3])]
    assert Run(make_policy("lfu"), 3)(passes).victims[-1].key != KEYS[0]
    assert Run(make_policy("use-rate"), 3)(passes).victims[-1].key == KEYS[0]


def test_ranks_stay_exact_after_a_hundred_million_tokens() -> None:
    """Decay is growth of later weights, which no float could hold but as a logarithm."""
    policy = make_policy("use-rate")
    policy.begin(0, 100_000_000)
    for step, key in enumerate((KEYS[0], KEYS[1], KEYS[1], KEYS[2]), start=1):
        policy.begin(step, 1)
        policy.touch(key)
    victim = policy.victim(())
    assert victim is not None
    assert (victim.key, victim.next_candidate) == (KEYS[0], KEYS[2])
    assert victim.score == pytest.approx(2 ** (-3 / HALF_LIFE), rel=1e-6)


def test_names_that_mean_nothing_are_refused_with_those_that_do() -> None:
    with pytest.raises(ConfigError, match=r"no policy 'best'; choose one of .*lru.*NAME-per-layer"):
        make_policy("best")
    assert make_policy(DEFAULT_POLICY)


@pytest.mark.parametrize("name", ["trust", "recency-trust", "trust-per-layer"])
def test_a_policy_that_needs_trust_says_so(name) -> None:
    with pytest.raises(ConfigError, match="trust of an earlier run"):
        make_policy(name)
