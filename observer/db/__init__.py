"""The record: its tables, its opening and its one writer. Readers use the v_* views of migrations/."""

from observer.db.session import open_db
from observer.db.writer import RunStart, Writer

__all__ = ["RunStart", "Writer", "open_db"]
