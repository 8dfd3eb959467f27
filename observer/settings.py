"""The settings of a job, checked, and what the record says of them. Doing the job is job.py."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

from observer.errors import ObserverError
from observer.observation import MOST_WINDOWS, SCORE_WINDOW_TOKENS
from observer.residency import EVENTS_CAP
from segmoe.policies import DEFAULT_POLICY, make_rule
from segmoe.units import parse_bytes

Plain: TypeAlias = str | int | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobConfig:
    """One observation job: which model on which texts, with how much memory, into which record."""

    model: Path
    corpus: Path
    db: Path
    experts: int | None = None  # budget in experts; a quarter of all if neither this nor `budget` is given
    budget: str | None = None  # budget in bytes, such as 4GiB
    policy: str = DEFAULT_POLICY
    trust_from: str | None = None  # name of an earlier run in the record, for policies that rank by trust
    run: str | None = None  # name; made from the time without one
    generate: int = 0  # tokens to continue the first texts by, afterwards
    generate_texts: int = 32
    generate_prompt_tokens: int = 32
    batch: int = 8  # texts a forward pass
    max_tokens: int = 256  # of a text; the rest is cut off
    limit: int | None = None  # first texts of the corpus
    loop: bool = False  # the corpus again and again, each time in another order
    seed: int = 0  # of these orders
    total_tokens: int | None = None  # to observe at most; whole batches
    time_limit: str | None = None  # of one start of the job, such as 90m
    keep_text: bool = False
    verify: bool = True  # compare with the stock model first
    window_tokens: int = SCORE_WINDOW_TOKENS  # of a score window, before windows are merged
    windows: int = MOST_WINDOWS  # to keep at most
    residency_events: int = EVENTS_CAP  # loads and evictions to keep one by one
    trace: bool = False  # keep the raw routing
    trace_every: int = 1  # of so many texts, one
    trace_cap: str = "10GiB"  # of all its files
    trace_impacts: bool = False
    trace_file_rows: int = 500_000
    metrics_port: int | None = None  # tell Prometheus

    def __post_init__(self) -> None:
        least = {"experts": 1, "batch": 1, "max_tokens": 2, "limit": 1, "generate": 0, "generate_texts": 1}
        least |= {"window_tokens": 1, "windows": 4, "trace_file_rows": 1}
        least |= {"total_tokens": 1, "residency_events": 0, "trace_every": 1, "metrics_port": 0}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ObserverError(f"{name} is {value}; give at least {bound}")
        if self.experts is not None and self.budget is not None:
            raise ObserverError("give the budget in experts or in bytes, not both")
        if self.trust_from is not None and not make_rule(self.policy).uses_trust:
            raise ObserverError(
                f"policy {self.policy!r} ranks by no trust; leave out --trust-from, or add --policy trust"
            )
        parse_bytes(self.trace_cap)
        if self.time_limit is not None:
            parse_duration(self.time_limit)

    def resolved(self, *, experts: int | None, corpus_sha256: str, trust_sha256: str | None = None) -> dict[str, Plain]:
        """Return all settings as they came to be, in plain types."""
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}
        return plain | {"experts": experts, CORPUS: corpus_sha256, TRUST: trust_sha256}


CORPUS, TRUST = "corpus_sha256", "trust_sha256"
NOT_HASHED = frozenset(
    {"model", "corpus", "db", "run", "keep_text", "verify", "total_tokens", "time_limit", "metrics_port"}
)
"""Settings that change no result, or only how much there is of it; model and corpus count by their digests."""


def config_hash(resolved: Mapping[str, Plain], checkpoint_digest: str) -> str:
    """Return a sha256 that two runs share if the same is done to the same model and texts."""
    text = json.dumps(_decisive(resolved) | {"checkpoint_digest": checkpoint_digest}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(then: Mapping[str, Plain], now: Mapping[str, Plain]) -> list[str]:
    """Say which decisive settings differ.

    >>> differences({"batch": 8, "model": "a"}, {"batch": 4, "model": "b"})
    ['batch was 8 and is 4 now']
    >>> differences({"corpus_sha256": "a"}, {"corpus_sha256": "b"})
    ['the corpus holds other texts']
    """
    before, after = _decisive(then), _decisive(now)
    names = [name for name in {**after, **before} if before.get(name) != after.get(name)]
    sentences = {CORPUS: "the corpus holds other texts", TRUST: "the trust of the earlier run is another one"}
    return [
        sentences.get(name, f"{name} was {before.get(name)} and is {after.get(name)} now")
        for name in sorted(names, key=lambda name: name not in sentences)
    ]


def _decisive(resolved: Mapping[str, Plain]) -> dict[str, Plain]:
    return {name: value for name, value in resolved.items() if name not in NOT_HASHED}


def versions() -> dict[str, str]:
    """Return what the run was made with."""
    packages = {name: version(name) for name in ("segmoe", "torch", "transformers", "numpy", "sqlalchemy")}
    return packages | definitions() | {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}


def definitions() -> dict[str, str]:
    """Return the versions of what the record's scores mean."""
    from observer import salience, trust

    return {
        "trust's definition": str(trust.DEFINITION_VERSION),
        "salience's definition": str(salience.DEFINITION_VERSION),
    }


def parse_duration(text: str) -> float:
    """Read a duration in seconds.

    >>> parse_duration("90"), parse_duration("1.5h"), parse_duration("7d")
    (90.0, 5400.0, 604800.0)
    """
    factors = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", text)
    if match is None:
        raise ObserverError(f"{text!r} is no duration; write seconds, or 90m, 8h, 7d")
    return float(match[1]) * factors[match[2]]
