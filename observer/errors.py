"""What can go wrong when observing, in one shallow tree. What can go wrong with a checkpoint is segmoe.errors.

ObserverError
  CorpusError          a corpus that cannot be read; carries .path .line (0: the whole file)
  DatabaseError        a record that cannot be opened, upgraded or written; carries .path
  RunNameTaken         the name of the run exists already; carries .name
  RunDiffers           the run exists, of another model, corpus or settings; carries .name .differences
  RunIsLive            another process is working on the run; carries .name
  RunNotFound          no such run in the record; carries .name
  TraceError           a route trace that cannot be written or read; carries .path
  ExportError          a folder that the record cannot be exported to; carries .path
  CollectorError       the observer failed while the model ran; carries .dropped_total
  GridError            experts that do not form a full layer x expert table, or an event outside of it
"""

from __future__ import annotations

from pathlib import Path


class ObserverError(Exception):
    """Base of all expected failures: the message says what happened, with which values, and what to do."""


class CorpusError(ObserverError):
    """A corpus that cannot be read."""

    def __init__(self, path: Path, line: int, problem: str) -> None:
        super().__init__(f"{path}:{line}: {problem}" if line else f"{path}: {problem}")
        self.path, self.line = path, line


class DatabaseError(ObserverError):
    """A record that cannot be opened, upgraded or written."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path


class TraceError(ObserverError):
    """A route trace that cannot be written or read."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path


class ExportError(ObserverError):
    """A folder that the record cannot be exported to."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path


class RunNameTaken(ObserverError):  # noqa: N818 - reads as a sentence where it is raised
    """The name of the run exists already."""

    def __init__(self, name: str) -> None:
        super().__init__(f"a run named {name!r} is in the record already; choose another name with --run")
        self.name = name


class RunDiffers(ObserverError):  # noqa: N818 - reads as a sentence where it is raised
    """The run exists and was made with other settings."""

    def __init__(self, name: str, differences: list[str]) -> None:
        super().__init__(
            f"run {name!r} is in the record already and cannot go on with other settings: {'; '.join(differences)}; "
            "use the same settings, or choose another name with --run"
        )
        self.name, self.differences = name, differences


class RunIsLive(ObserverError):  # noqa: N818 - reads as a sentence where it is raised
    """Another process is working on the run."""

    def __init__(self, name: str) -> None:
        super().__init__(f"run {name!r} is going on in another process; end that one first, or choose another name")
        self.name = name


class RunNotFound(ObserverError):  # noqa: N818 - reads as a sentence where it is raised
    """No such run in the record."""

    def __init__(self, name: str, known: list[str]) -> None:
        have = ", ".join(known) if known else "none; make one with `observer run`"
        super().__init__(f"no run named {name!r} in the record; it has: {have}" if name else f"no runs: {have}")
        self.name = name


class CollectorError(ObserverError):
    """The observer failed while the model ran; the model did not notice."""

    def __init__(self, cause: BaseException, dropped_total: int) -> None:
        super().__init__(
            f"observing stopped: {type(cause).__name__}: {cause}; {dropped_total} events were not recorded"
            " (what was recorded before is kept)"
        )
        self.dropped_total = dropped_total


class GridError(ObserverError):
    """Experts that do not form a full layer x expert table, or an event outside of it."""
