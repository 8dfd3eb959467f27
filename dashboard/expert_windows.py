"""The one view of millions of rows, each expert in each score window: read from the record by its key, not copied.

Its key is (run, window, component, layer, expert), so that one window is one stretch of the file, and one expert a
look-up per window. Totals over all windows are kept by stretches of windows, and of those only what changed is read.
"""

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from dashboard.contract import EXPERT_WINDOWS
from dashboard.record import Cursor, Progress, read_table, snapshot

_STRETCH = 16  # windows in a stretch, of a run of up to 2,048
_STRETCHES = 128  # at most; a longer run has longer ones
_RUNS = 4  # that totals are kept of

_KEY = ("component", "layer", "expert")
_COUNTS = ("hits", "misses")


class _Stretch(NamedTuple):
    """The totals of some windows, and by what those are known to be unchanged."""

    windows: tuple[tuple[int, ...], ...]
    totals: pa.Table


class ExpertWindows:
    """Reads parts of v_expert_window; any thread may."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._adding = threading.Lock()
        self._kept: OrderedDict[tuple[Any, ...], dict[range, _Stretch]] = OrderedDict()

    def of_expert(self, run_id: int, component: str, layer: int, expert: int) -> pa.Table:
        """All rows of one expert."""
        windows = "select window_index from v_window where run_id = ?"
        where = f"where run_id = ? and window_index in ({windows}) and component = ? and layer = ? and expert = ?"
        with snapshot(self.path) as record:
            return read_table(record, EXPERT_WINDOWS, where, (run_id, run_id, component, layer, expert))

    def of_window(self, run_id: int, window_index: int) -> pa.Table:
        """All rows of one window."""
        with snapshot(self.path) as record:
            return read_table(record, EXPERT_WINDOWS, "where run_id = ? and window_index = ?", (run_id, window_index))

    def totals(self, run_id: int, progress: Progress = lambda view, rows: None) -> pa.Table:
        """Hits and misses of each expert, to be added up: a row for each stretch of windows.

        What is kept of a stretch holds as long as its windows are the same ones, with the same counters.
        """
        with self._adding, snapshot(self.path) as record:
            record.execute("select run_id, name, started_at from v_run where run_id = ?", (run_id,))
            kept = self._kept_of(record.fetchone() or (run_id,))
            record.execute(
                "select window_index, last_window, tokens, hits, misses from v_window where run_id = ?"
                " order by window_index",
                (run_id,),
            )
            windows = [tuple(row) for row in record.fetchall()]
            found: dict[range, _Stretch] = {}
            rows = 0
            for stretch, held in _in_stretches(windows).items():
                before = kept.get(stretch)
                if before is None or before.windows != held:
                    before = _Stretch(held, _add(record, run_id, stretch))
                    rows += before.totals.num_rows * len(held)
                    progress(EXPERT_WINDOWS, rows)
                found[stretch] = before
            kept.clear()
            kept.update(found)
        if not found:
            return _NONE
        return pa.concat_tables(stretch.totals for stretch in found.values())

    def _kept_of(self, run: tuple[Any, ...]) -> dict[range, _Stretch]:
        kept = self._kept.setdefault(run, {})
        self._kept.move_to_end(run)
        while len(self._kept) > _RUNS:
            self._kept.popitem(last=False)
        return kept


_SCHEMA = pa.schema(
    [("run_id", pa.int64()), ("component", pa.string())]
    + [(name, pa.int64()) for name in ("layer", "expert", *_COUNTS)]
)
_NONE = _SCHEMA.empty_table()


def _in_stretches(windows: list[tuple[int, ...]]) -> dict[range, tuple[tuple[int, ...], ...]]:
    """Group windows, in their order, by where their index lies.

    >>> _in_stretches([(0, 5), (7, 6), (16, 7)])
    {range(0, 16): ((0, 5), (7, 6)), range(16, 32): ((16, 7),)}
    """
    length = _STRETCH
    while windows and windows[-1][0] >= length * _STRETCHES:
        length *= 2
    found: dict[range, tuple[tuple[int, ...], ...]] = {}
    for window in windows:
        first = window[0] - window[0] % length
        stretch = range(first, first + length)
        found[stretch] = (*found.get(stretch, ()), window)
    return found


def _add(record: Cursor, run_id: int, stretch: range) -> pa.Table:
    """Add up the counts of each expert; Arrow does it in half of the time that SQLite takes to sort the rows."""
    where = "run_id = ? and window_index between ? and ?"
    columns = ", ".join((*_KEY, *_COUNTS))
    record.execute(f"select {columns} from {EXPERT_WINDOWS} where {where}", (run_id, stretch[0], stretch[-1]))
    totals = record.fetch_arrow_table().group_by(_KEY).aggregate([(name, "sum") for name in _COUNTS])
    totals = totals.rename_columns({f"{name}_sum": name for name in _COUNTS})
    totals = totals.append_column("run_id", pa.array([run_id] * totals.num_rows, pa.int64()))
    return totals.select(_SCHEMA.names).cast(_SCHEMA)
