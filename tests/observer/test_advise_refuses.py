"""What there is no advice on."""

from pathlib import Path

import pytest

from observer.advise import advise
from observer.db import Writer, open_db
from observer.errors import ObserverError
from tests.observer.streams import EXPERT_BYTES
from tests.observer.writing import start_of, write_run


def test_there_is_no_advice_without_picks(tmp_path: Path) -> None:
    engine = open_db(tmp_path / "new.db")
    Writer(engine, []).start(start_of("new", 0), EXPERT_BYTES)
    with pytest.raises(ObserverError, match="run 'new' holds no picks"):
        advise(engine)
    engine.dispose()


@pytest.mark.parametrize("bound", [-0.1, 1.1, float("nan")])
def test_a_bound_that_no_trust_has_is_refused(tmp_path: Path, bound: float) -> None:
    write_run(tmp_path / "r.db")
    engine = open_db(tmp_path / "r.db", create=False)
    with pytest.raises(ObserverError, match="trust lies between 0 and 1"):
        advise(engine, bound=bound)
    engine.dispose()
