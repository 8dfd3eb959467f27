"""Listens to a segmented model, scores its experts and records what it saw. Running the model is segmoe's.

The names below load on first use, so that `import observer.errors` costs neither torch nor SQLAlchemy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from observer.collect import Collector
    from observer.db.session import open_db
    from observer.errors import ObserverError
    from observer.job import JobConfig, run_job
    from observer.observation import TextRef

__all__ = ["Collector", "JobConfig", "ObserverError", "TextRef", "open_db", "run_job"]

_HOMES = {
    "Collector": "observer.collect",
    "JobConfig": "observer.job",
    "ObserverError": "observer.errors",
    "TextRef": "observer.observation",
    "open_db": "observer.db.session",
    "run_job": "observer.job",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'observer' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
