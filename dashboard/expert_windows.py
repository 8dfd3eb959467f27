"""The one view of millions of rows, each expert in each score window: read from the record by its key, not copied.

Its key is (run, window, component, layer, expert), so that one window is one stretch of the file, and one expert a
look-up per window. Totals over all windows are in other views.
"""

from pathlib import Path

import pyarrow as pa

from dashboard.contract import EXPERT_WINDOWS
from dashboard.record import read_table, snapshot


def of_expert(path: Path, run_id: int, component: str, layer: int, expert: int) -> pa.Table:
    """All rows of one expert."""
    windows = "select window_index from v_window where run_id = ?"
    where = f"where run_id = ? and window_index in ({windows}) and component = ? and layer = ? and expert = ?"
    with snapshot(path) as record:
        return read_table(record, EXPERT_WINDOWS, where, (run_id, run_id, component, layer, expert))


def of_window(path: Path, run_id: int, window_index: int) -> pa.Table:
    """All rows of one window."""
    with snapshot(path) as record:
        return read_table(record, EXPERT_WINDOWS, "where run_id = ? and window_index = ?", (run_id, window_index))
