"""A replay of a run at its own policy and budget is the run, event for event; and nobody beats Belady."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import segmoe
from observer.replay import compiled
from observer.replay.belady import belady, next_uses
from observer.replay.lru import _by_layers
from observer.replay.simulate import _run, simulate
from observer.replay.trace import Trace
from segmoe.events import ExpertEvicted, ExpertKey, ExpertLoaded, Routed, StepDone
from segmoe.policies import POLICIES, make_rule
from tests import tiny
from tests.observer.traces import of_accesses, zipf
from tests.tiny import RecordingSink

POLICY_NAMES = [*POLICIES, *(f"{name}-per-layer" for name in POLICIES)]
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [20, 21, 22], [40, 41, 42, 43, 44]]


class Recording(RecordingSink):
    """Keeps every event."""

    def trace(self, keys: list[ExpertKey], nbytes: dict[ExpertKey, int]) -> Trace:
        """What the router picked, padding included, since the model computes it."""
        steps = self.of(StepDone)
        number = {key: index for index, key in enumerate(keys)}
        row = {step.step: index for index, step in enumerate(steps)}
        picks = [
            (row[event.step], number[ExpertKey(event.component, event.layer, int(expert))])
            for event in self.of(Routed)
            for expert in np.unique(event.topk_ids)
        ]
        return Trace.of_picks(
            np.array([one for one, _ in picks]),
            np.array([other for _, other in picks]),
            tokens=np.array([step.tokens for step in steps]),
            is_decode=np.array([step.phase == "decode" for step in steps]),
            keys=keys,
            nbytes=np.array([nbytes[key] for key in keys]),
        )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tiny.build("Qwen3Moe"), tmp_path_factory.mktemp("qwen3"), shards=2)


def drive(model, kind: str) -> None:
    """Prefill of a left-padded batch, decode of one text, or both in turn."""
    longest = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in PROMPTS])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    with torch.inference_mode():
        if kind in ("prefill", "mixed"):
            for shift in range(4):
                model(input_ids=(ids + shift) * mask, attention_mask=mask, use_cache=False)
        if kind in ("decode", "mixed"):
            for prompt in PROMPTS:
                model.generate(torch.tensor([prompt]), max_new_tokens=10, do_sample=False)
        if kind == "mixed":
            torch.manual_seed(5)
            model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=True)


@pytest.mark.parametrize("policy", POLICY_NAMES)
@pytest.mark.parametrize("kind", ["prefill", "decode", "mixed"])
def test_a_replay_at_the_runs_own_policy_and_budget_is_the_run(checkpoint: Path, policy: str, kind: str) -> None:
    for experts, threads in ((2, 0), (7, 2), (15, 1)):
        sink = Recording()
        manifest = segmoe.load(checkpoint).segmoe.manifest
        nbytes = {key: segment.nbytes for key, segment in manifest.experts.items()}
        keys = sorted(nbytes)
        trust = {key: (index * 5 % 24 + 1) / 25 for index, key in enumerate(keys) if index % 7}
        known = trust if make_rule(policy).uses_trust else None
        torch.manual_seed(0)
        model = segmoe.load(
            checkpoint, experts=experts, policy=policy, trust=known, sink=sink, capture="routing", threads=threads
        )
        drive(model, kind)
        trace = sink.trace(keys, nbytes)
        outcome = simulate(trace, make_rule(policy), experts=experts, trust=known)
        steps = [step.step for step in sink.of(StepDone)]

        def at(index: int, steps: list[int] = steps, trace: Trace = trace) -> int:
            return steps[trace.pass_index[index]]

        loads = [(at(index), keys[trace.expert[index]]) for index in np.flatnonzero(~outcome.hit)]
        assert loads == [(event.step, event.key) for event in sink.of(ExpertLoaded)]
        evictions = [
            (at(index), keys[expert], score)
            for index, expert, score in zip(outcome.evicted_at, outcome.evicted, outcome.score, strict=True)
        ]
        assert evictions == [(event.step, event.key, event.policy_score) for event in sink.of(ExpertEvicted)]
        hits = np.bincount(trace.pass_index, outcome.hit, minlength=len(steps))
        assert hits.tolist() == [step.hits for step in sink.of(StepDone)]
        assert outcome.misses == model.segmoe.cache.counters.misses > 0
        model.segmoe.close()


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_a_budget_in_bytes_is_replayed_too(checkpoint: Path, policy: str) -> None:
    manifest = segmoe.load(checkpoint).segmoe.manifest
    nbytes = {key: segment.nbytes for key, segment in manifest.experts.items()}
    keys, sink = sorted(nbytes), Recording()
    budget = 6 * max(nbytes.values()) + 1
    known = dict.fromkeys(keys, 0.5) if make_rule(policy).uses_trust else None
    model = segmoe.load(checkpoint, budget=budget, policy=policy, trust=known, sink=sink)
    drive(model, "mixed")
    outcome = simulate(sink.trace(keys, nbytes), make_rule(policy), nbytes=budget, trust=known)
    assert [keys[expert] for expert in outcome.evicted] == [event.key for event in sink.of(ExpertEvicted)]
    assert outcome.misses == model.segmoe.cache.counters.misses


@pytest.mark.skipif(not compiled.IS_COMPILED, reason="numba is not installed")
@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_compiled_and_plain_decide_alike(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a bit of a score differs, so no tie can be broken in another way."""
    rng = np.random.default_rng(3)
    keys = [ExpertKey("model", layer, expert) for layer in range(4) for expert in range(16)]
    passes, tokens = np.repeat(np.arange(400), 24), rng.integers(1, 60, 400)
    trace = Trace.of_picks(
        passes, rng.zipf(1.3, len(passes)) % 64, tokens=tokens, is_decode=tokens == 1, keys=keys, nbytes=np.ones(64)
    )
    trust = {key: float(value) for key, value in zip(keys, rng.random(64), strict=True)}
    fast = simulate(trace, make_rule(policy), experts=24, trust=trust)
    monkeypatch.setattr("observer.replay.simulate._run", _run.py_func)
    monkeypatch.setattr("observer.replay.lru._by_layers", _by_layers.py_func)
    monkeypatch.setattr("observer.replay.simulate._victim", simulate.__globals__["_victim"].py_func)
    slow = simulate(trace, make_rule(policy), experts=24, trust=trust)
    for name in ("hit", "evicted_at", "evicted", "score"):
        np.testing.assert_array_equal(getattr(fast, name), getattr(slow, name))


@settings(max_examples=200, deadline=None)
@given(
    picks=st.integers(1, 200),
    seed=st.integers(0, 1000),
    width=st.integers(1, 12),
    experts=st.one_of(st.none(), st.integers(1, 24)),
    nbytes=st.one_of(st.none(), st.integers(1, 60)),
    plain=st.booleans(),
)
def test_lru_by_itself_does_what_the_shared_order_does(
    picks: int, seed: int, width: int, experts: int | None, nbytes: int | None, plain: bool
) -> None:
    """In passes over three layers of eight experts of all sizes; recency without trust is the same order."""
    keys = [ExpertKey("model", layer, expert) for layer in range(3) for expert in range(8)]
    passes = np.arange(picks) // width
    trace = Trace.of_picks(
        passes,
        np.random.default_rng(seed).integers(0, 24, picks),
        tokens=np.ones(passes[-1] + 1, np.int64),
        is_decode=np.ones(passes[-1] + 1, np.bool_),
        keys=keys,
        nbytes=np.arange(24) % 5 + 1,
    )
    budget = dict(experts=experts, nbytes=nbytes, plain=plain)
    alone = simulate(trace, POLICIES["lru"], **budget)
    shared = simulate(trace, POLICIES["recency-trust"], **budget)
    for name in ("hit", "evicted_at", "evicted"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(shared, name))


@settings(max_examples=60, deadline=None)
@given(accesses=st.lists(st.integers(0, 5), min_size=1, max_size=9), experts=st.integers(1, 4))
def test_nobody_misses_less_often_than_belady(accesses: list[int], experts: int) -> None:
    """Not even the best of all possible sequences of victims, tried out one and all."""
    trace = of_accesses(np.array(accesses), 6)
    best = belady(trace, experts=experts).misses

    def fewest(at: int, resident: frozenset[int]) -> int:
        if at == len(accesses):
            return 0
        wanted = accesses[at]
        if wanted in resident:
            return fewest(at + 1, resident)
        if len(resident) < experts:
            return 1 + fewest(at + 1, resident | {wanted})
        return 1 + min(fewest(at + 1, resident - {leaves} | {wanted}) for leaves in resident)

    assert best == fewest(0, frozenset())
    for name, rule in POLICIES.items():
        trust = dict.fromkeys(trace.keys, 0.5)
        assert simulate(trace, rule, experts=experts, trust=trust, plain=True).misses >= best, name


@settings(max_examples=60, deadline=None)
@given(
    accesses=st.integers(1, 1500),
    objects=st.integers(1, 60),
    seed=st.integers(0, 1000),
    experts=st.one_of(st.none(), st.integers(1, 61)),
    nbytes=st.one_of(st.none(), st.integers(1, 200)),
)
def test_belady_evicts_whom_one_finds_by_looking_at_all(
    accesses: int, objects: int, seed: int, experts: int | None, nbytes: int | None
) -> None:
    """The resident whose next use is last; of those that are not used again the one of the lowest number."""
    sizes = np.arange(objects) % 4 + 1
    rng = np.random.default_rng(seed)
    trace = replace(of_accesses(rng.integers(0, objects, accesses), objects), nbytes=sizes)
    following, due, evictions = next_uses(trace), {}, []
    for at, wanted in enumerate(trace.expert.tolist()):
        while (
            wanted not in due
            and due
            and (len(due) >= (experts or 10**9) or sum(sizes[list(due)]) + sizes[wanted] > (nbytes or 10**9))
        ):
            victim = max(due, key=lambda resident: (due[resident], -resident))
            evictions.append((at, victim, -float(due.pop(victim))))
        due[wanted] = following[at]
    found = belady(trace, experts=experts, nbytes=nbytes)
    rows = zip(found.evicted_at.tolist(), found.evicted.tolist(), found.score.tolist(), strict=True)
    assert list(rows) == evictions


@pytest.mark.skipif(not compiled.IS_COMPILED, reason="numba is not installed")
def test_belady_decides_alike_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = of_accesses(zipf(3000, 200))
    fast = belady(trace, experts=40)
    for name in ("_run", "_next_uses", "_take", "_free", "_last"):
        function = getattr(sys.modules[belady.__module__], name)
        monkeypatch.setattr(sys.modules[belady.__module__], name, function.py_func)
    slow = belady(trace, experts=40)
    for name in ("hit", "evicted_at", "evicted", "score"):
        np.testing.assert_array_equal(getattr(fast, name), getattr(slow, name))


def test_next_uses_are_those_that_one_sees() -> None:
    trace = of_accesses(np.array([3, 1, 3, 2, 1, 3]))
    never = np.iinfo(np.int64).max
    assert next_uses(trace).tolist() == [2, 4, 5, never, never, never]


def test_a_pass_touches_an_expert_once_and_passes_can_be_chosen() -> None:
    keys = [ExpertKey("model", layer, expert) for layer in range(2) for expert in range(3)]
    picks = list(itertools.chain([(0, 4), (0, 1), (0, 1), (0, 0)], [(1, 5), (1, 5)], [(2, 0)]))
    trace = Trace.of_picks(
        np.array([one for one, _ in picks]),
        np.array([other for _, other in picks]),
        tokens=np.array([2, 1, 1]),
        is_decode=np.array([False, True, True]),
        keys=keys,
        nbytes=np.ones(6),
    )
    assert trace.expert.tolist() == [0, 1, 4, 5, 0]
    assert trace.clock().tolist() == [2, 3, 4]
    decode = trace.only(trace.is_decode)
    assert (decode.expert.tolist(), decode.pass_index.tolist(), decode.tokens.tolist()) == ([5, 0], [0, 1], [1, 1])
