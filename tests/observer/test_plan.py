"""Plans, pins, reloads and regret on synthetic traces of which the answer is known."""

import numpy as np
import pytest

from observer.errors import ObserverError
from observer.replay.cost import reloads
from observer.replay.plan import plan, worth_a_pin
from observer.replay.regret import regret
from observer.replay.simulate import simulate
from observer.replay.sweep import Setting, run_one, sweep
from segmoe.events import ExpertKey
from segmoe.policies import POLICIES
from tests.observer.traces import drifting, loops, of_accesses, zipf


def test_the_smallest_budget_is_one_that_one_less_would_not_do() -> None:
    trace = of_accesses(zipf(6000, 120))
    for found in plan(trace, 0.6, ["lru", "use-rate", "belady"]):
        assert 1 - run_one(trace, found.policy, found.experts).miss_ratio == found.hit_rate >= 0.6
        assert 1 - run_one(trace, found.policy, found.experts - 1).miss_ratio < 0.6
        assert found.low < found.hit_rate < found.high
        assert found.nbytes == found.experts
    with pytest.raises(ObserverError, match="no budget reaches a hit rate of"):
        plan(trace, 0.999, ["lru"])


def test_the_interval_of_a_plan_covers_another_stretch_of_the_same_kind() -> None:
    """Of 40 traces whose next stretch is measured, the 90% interval holds it in most."""
    covered = 0
    for seed in range(40):
        accesses = zipf(8000, 120, seed=seed)
        (found,) = plan(of_accesses(accesses), 0.6, ["lru"])
        outcome = simulate(of_accesses(zipf(8000, 120, seed=seed)[::-1].copy()), POLICIES["lru"], experts=found.experts)
        covered += found.low <= 1 - outcome.miss_ratio <= found.high
    assert covered >= 32


def test_who_is_always_used_is_worth_a_pin() -> None:
    trace = of_accesses(np.array([0] * 95 + [1] * 5), 3)
    assert worth_a_pin(trace) == [(ExpertKey("model", 0, 0), 0.95)]
    assert worth_a_pin(of_accesses(loops(100, 10))) == []


def test_each_eviction_finds_its_reload() -> None:
    trace = of_accesses(np.array([0, 1, 2, 0, 1, 2]))
    outcome = simulate(trace, POLICIES["lru"], experts=2, plain=True)
    assert outcome.evicted.tolist() == [0, 1, 2, 0]
    assert reloads(trace, outcome).tolist() == [3, 4, 5, 6]
    cost = sweep(trace, [Setting("lru", 2)], bytes_per_s=2, soon_tokens=1)[0]
    assert (cost.misses, cost.seconds, cost.evictions, cost.reloads_soon) == (6, 3, 4, 3)


def test_regret_knows_a_good_rule_from_a_bad_one_and_noise_from_both() -> None:
    """Evictions of experts that come back soon are regretted; a value drawn at random explains nothing."""
    trace = of_accesses(drifting(30_000, 300))
    outcome = run_one(trace, "random", 60)
    waits = reloads(trace, outcome) - outcome.evicted_at
    soon = regret(trace, outcome, -waits.astype(float), experts=60)
    assert soon.groups[-1].regretted > soon.groups[0].regretted_high
    assert soon.difference_low > 0
    noise = regret(trace, outcome, np.random.default_rng(0).random(len(waits)), experts=60)
    assert noise.difference_low < 0 < noise.difference_high
    assert sum(group.evictions for group in noise.groups) == len(waits)


def test_beladys_own_evictions_are_never_regretted() -> None:
    trace = of_accesses(zipf(5000, 100))
    outcome = run_one(trace, "belady", 30)
    found = regret(trace, outcome, outcome.score, experts=30)
    assert [group.regretted for group in found.groups] == [0, 0, 0]
