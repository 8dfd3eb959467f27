"""The settings of a job, checked, and what the record says of them. Doing the job is job.py."""

from __future__ import annotations

import hashlib
import json
import platform
import sqlite3
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from observer.errors import ObserverError
from segmoe.policies import DEFAULT_POLICY


@dataclass(frozen=True, slots=True, kw_only=True)
class JobConfig:
    """One observation job: which model on which texts, with how much memory, into which record."""

    model: Path
    corpus: Path
    db: Path
    experts: int | None = None  # budget in experts; a quarter of all if neither this nor `budget` is given
    budget: str | None = None  # budget in bytes, such as 4GiB
    policy: str = DEFAULT_POLICY
    run: str | None = None  # name; made from the time without one
    generate: int = 0  # tokens to continue the first texts by, afterwards
    generate_texts: int = 32
    generate_prompt_tokens: int = 32
    batch: int = 8  # texts a forward pass
    max_tokens: int = 256  # of a text; the rest is cut off
    limit: int | None = None  # first texts of the corpus
    keep_text: bool = False
    verify: bool = True  # compare with the stock model first

    def __post_init__(self) -> None:
        least = {"experts": 1, "batch": 1, "max_tokens": 2, "limit": 1, "generate": 0}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ObserverError(f"{name} is {value}; give at least {bound}")
        if self.experts is not None and self.budget is not None:
            raise ObserverError("give the budget in experts or in bytes, not both")

    def resolved(self, *, experts: int | None, corpus_sha256: str) -> dict[str, str | int | bool | None]:
        """Return all settings as they came to be, in plain types."""
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}
        return plain | {"experts": experts, "corpus_sha256": corpus_sha256}


NOT_HASHED = frozenset({"model", "corpus", "db", "run", "keep_text", "verify"})
"""Settings that change no result; model and corpus count by their digests."""


def config_hash(resolved: dict[str, str | int | bool | None], checkpoint_digest: str) -> str:
    """Return a sha256 that two runs share if the same is done to the same model and texts."""
    decisive = {name: value for name, value in resolved.items() if name not in NOT_HASHED}
    text = json.dumps(decisive | {"checkpoint_digest": checkpoint_digest}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def versions() -> dict[str, str]:
    """Return what the run was made with."""
    packages = {name: version(name) for name in ("segmoe", "torch", "transformers", "numpy", "sqlalchemy")}
    return packages | {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
