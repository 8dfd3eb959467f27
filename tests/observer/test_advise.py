"""Advice against counts made by hand from the same events; the record is read only."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from observer.ablation import Ablation
from observer.advise import advise, print_advice, wilson
from observer.db import open_db
from observer.db.session import reading
from observer.report import print_report, read_report
from observer.validate import SCOPES, Correlation, Coverage
from observer.validate_report import print_validation
from segmoe.events import ExpertKey, Routed
from tests.observer.streams import Batch, batches
from tests.observer.writing import observe


@pytest.fixture(scope="module")
def run() -> list[Batch]:
    """Expert 5 of the first layer does next to nothing; expert 0 there is followed by 1 and 2."""
    made = batches(4, 260, gain=[3, 3, 3, 3, 3, 0.001])
    for batch in made:
        first, second = (event for event in batch.events if isinstance(event, Routed))
        follows = (first.topk_ids == 0).any(axis=1)
        second.topk_ids[follows] = [1, 2]
    return made


@pytest.fixture(scope="module")
def db(run: list[Batch], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return observe(tmp_path_factory.mktemp("record") / "r.db", run)


def picked(run: list[Batch]) -> Counter[ExpertKey]:
    counts: Counter[ExpertKey] = Counter()
    for batch in run:
        for event in batch.events:
            if isinstance(event, Routed):
                ids = event.topk_ids[event.position >= 0].ravel().tolist()
                counts.update(ExpertKey("model", event.layer, expert) for expert in ids)
    return counts


def test_advice_is_what_the_events_say_and_changes_nothing(db: Path, run: list[Batch]) -> None:
    before = hashlib.sha256(db.read_bytes()).hexdigest()
    engine = open_db(db, create=False)
    found = advise(engine, "one")
    engine.dispose()
    assert hashlib.sha256(db.read_bytes()).hexdigest() == before
    counts = picked(run)
    best = [key for key, _ in counts.most_common(4)]
    assert set(found.pins) == set(best)  # the budget is 4 experts
    share = sum(counts[key] for key in best) / counts.total()
    assert found.pinned_share.value == pytest.approx(share)
    assert found.pinned_share.low < share < found.pinned_share.high
    assert found.token_cycle == 4
    for wanted, experts, met in found.budgets:
        assert met.value >= wanted - 1e-9
        assert sum(n for _, n in counts.most_common(experts - 1)) / counts.total() < wanted


def test_only_experts_that_do_nothing_anywhere_may_be_dropped(db: Path) -> None:
    engine = open_db(db, create=False)
    assert set(advise(engine).drops) == {ExpertKey("model", layer, 5) for layer in (0, 2)}
    assert advise(engine).dropped_impact < 0.001
    assert advise(engine, bound=0.0).drops == []
    engine.dispose()


def test_what_was_lost_is_told_wherever_the_statistics_are(run: list[Batch], tmp_path: Path, capsys) -> None:
    observe(tmp_path / "r.db", run[:40], paused=range(3, 9))
    lost = sum(len(batch.events) for batch in run[3:9])
    seen = sum(len(batch.events) for batch in run[:40]) - lost
    wanted = f"Events: {seen:,} seen, {lost:,} dropped ({lost:,} paused)"
    engine = open_db(tmp_path / "r.db", create=False)
    print_advice(advise(engine, "one"))
    assert wanted in capsys.readouterr().out
    print_report(read_report(engine, "one"), tmp_path / "r.db")
    assert wanted in capsys.readouterr().out
    rho = dict.fromkeys(SCOPES, Correlation(0.5, 0.4, 0.6))
    found = {name: rho for name in ("trust", "REAP", "trust - REAP")}
    covered = [Coverage("python", 0.9, 0.05, 0.05)]
    removed = Ablation([ExpertKey("model", 0, 0)], ["python"], np.ones((1, 1)), np.ones(1))
    print_validation(found, covered, {}, removed, read_report(engine, "one").run)
    assert wanted in capsys.readouterr().out
    with reading(engine).begin() as connection:
        gaps = connection.exec_driver_sql("SELECT reason, SUM(count) FROM v_gap GROUP BY reason").fetchall()
    assert [tuple(gap) for gap in gaps] == [("paused", lost)]
    engine.dispose()


def test_prefetching_follows_what_followed(db: Path) -> None:
    engine = open_db(db, create=False)
    first, second, third = advise(engine).prefetch[:3]
    engine.dispose()
    assert {first.after, second.after} == {ExpertKey("model", 2, 1), ExpertKey("model", 2, 2)}
    assert first.before == second.before == ExpertKey("model", 0, 0)
    assert first.probability.value == second.probability.value == 1.0 and third.probability.value < 0.9


def test_wilsons_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    found = [wilson(hits, 40) for hits in rng.binomial(40, 0.2, 4000)]
    assert np.mean([share.low <= 0.2 <= share.high for share in found]) == pytest.approx(0.9, abs=0.04)
