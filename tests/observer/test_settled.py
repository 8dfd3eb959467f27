"""Past scores computed anew from the record alone, and how settled a ranking is."""

from pathlib import Path

import numpy as np
import pytest

from observer.db import open_db
from observer.db.session import reading
from observer.errors import ObserverError
from observer.settled import rebuild, settled, settled_layer
from tests.observer.streams import batches
from tests.observer.writing import observe


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return observe(tmp_path_factory.mktemp("record") / "r.db", batches(3, 60, gain=[0.5, 1, 2, 3, 4, 5]))


def test_the_score_of_every_past_window_can_be_computed_from_the_record(db: Path) -> None:
    engine = open_db(db)
    with reading(engine).begin() as connection:
        rows = connection.exec_driver_sql(
            "SELECT window_index, trust, trust_low, trust_high FROM v_expert_window ORDER BY 1, layer, expert"
        ).fetchall()
    stored = np.array([row[1:] for row in rows]).reshape(-1, 2, 6, 3)
    windows = sorted({row[0] for row in rows})
    assert len(windows) > 8
    for place, window in enumerate(windows):
        found = np.stack(rebuild(engine, "one", window, "model"), axis=2)
        np.testing.assert_allclose(found, stored[place], rtol=1e-12)
    assert (stored[0] != stored[-1]).all()
    engine.dispose()


def test_a_window_that_is_not_there_is_refused(db: Path) -> None:
    engine = open_db(db)
    with pytest.raises(ObserverError, match="no window 999"):
        rebuild(engine, "one", 999, "model")
    engine.dispose()


def test_a_ranking_with_clear_differences_settles(db: Path) -> None:
    engine = open_db(db)
    found = settled(engine, "one")
    assert [(s.component, s.layer) for s in found] == [("model", 0), ("model", 2)]
    assert all(s.rho > 0.9 and s.blocks > 20 for s in found)
    engine.dispose()


def test_rankings_of_chance_are_not_settled() -> None:
    rng = np.random.default_rng(1)
    rho, narrow = settled_layer(rng.random(64), rng.random(64), np.zeros(64), np.full(64, 0.5))
    assert abs(rho) < 0.4 and narrow == 0
    assert settled_layer(np.ones(4), np.ones(4), np.zeros(4), np.ones(4))[0] == 0
