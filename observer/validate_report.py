"""Runs a validation from a record and prints it. What is compared is validate.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from sqlalchemy import RowMapping

from observer.ablation import Ablation, ablate, nll_keeping
from observer.corpus import Text
from observer.db.session import reading
from observer.db.writer import write_validation
from observer.heldout import Statistics, held_out, nulls
from observer.observation import ALL
from observer.report import evidence, read_report
from observer.validate import (
    COVERAGE,
    SCOPES,
    Correlation,
    Coverage,
    add_held_out,
    correlate,
    coverage,
    read_statistics,
    sample_experts,
    validation_rows,
)
from segmoe.events import ExpertKey

KEPT_SHARES = (0.75, 0.5, 0.25)
KEPT_BY = ("trust", "impact per token (I)", "REAP", "activation frequency", "chance")
CURVE_TEXTS = 64

Progress = Callable[[str], Callable[[int, int], None]]


def validate(
    engine: Any, run: str | None, texts: Sequence[Text], *, experts: int | None, cache: Path | None, progress: Progress
) -> None:
    """Ablate, compare, print, and store the result with the run; `experts` limits it to a stratified sample."""
    shown = read_report(engine, run).run
    checkpoint = Path(shown["checkpoint"])
    with reading(engine).begin() as connection:
        rows = connection.exec_driver_sql(
            "SELECT component, layer, expert FROM v_expert WHERE run_id = ? ORDER BY 1, 2, 3", (shown["run_id"],)
        ).fetchall()
    every = [ExpertKey(*row) for row in rows]
    statistics = read_statistics(engine, shown["name"], every)
    chosen = None if experts is None else sample_experts(statistics, every, experts)
    ablation = ablate(checkpoint, texts, chosen, cache=cache, progress=progress("removing experts"))
    statistics = read_statistics(engine, shown["name"], ablation.keys)
    tables, falls = held_out(checkpoint, texts)
    add_held_out(statistics, ablation.keys, falls, nulls(checkpoint, texts))
    found = correlate(ablation, statistics)
    covered = coverage(statistics, tables, ablation.keys)
    everything = read_statistics(engine, shown["name"], every)
    part = spread(texts, CURVE_TEXTS)
    curves = kept_curves(checkpoint, part, everything, every, progress("keeping the best"))
    write_validation(engine, int(shown["run_id"]), validation_rows(found, covered, ablation))
    print_validation(found, covered, curves, ablation, shown)


def spread(texts: Sequence[Text], count: int) -> list[Text]:
    """So many of the texts, evenly from all of them."""
    places = np.unique(np.linspace(0, len(texts) - 1, min(count, len(texts))).astype(int))
    return [texts[place] for place in places]


def kept_curves(
    checkpoint: Path,
    texts: Sequence[Text],
    statistics: Statistics,
    keys: Sequence[ExpertKey],
    progress: Callable[[int, int], None],
) -> dict[str, list[float]]:
    """NLL per token with only the best three quarters, half and quarter of all experts, by what they were ranked by."""
    chance = np.random.default_rng(0).random(len(keys))
    kept: list[set[ExpertKey]] = [set(keys)]
    for name in KEPT_BY:
        order = np.argsort(-(chance if name == "chance" else statistics[ALL][name]), kind="stable")
        kept += [{keys[place] for place in order[: round(share * len(keys))]} for share in KEPT_SHARES]
    nll = nll_keeping(checkpoint, texts, kept, progress=progress)
    rows = [nll[1 + start : 1 + start + len(KEPT_SHARES)] for start in range(0, len(nll) - 1, len(KEPT_SHARES))]
    return dict(zip(KEPT_BY, ([nll[0], *row] for row in rows), strict=True))


def print_validation(
    found: dict[str, dict[str, Correlation]],
    covered: Sequence[Coverage],
    curves: dict[str, list[float]],
    ablation: Ablation,
    run: RowMapping,
) -> None:
    """Print a line for each statistic, the one that foretells best first; then intervals and curves."""
    console = Console()
    console.width = max(console.width, 130)
    scopes = [scope for scope in next(iter(found.values())) if scope in SCOPES]
    table = Table("Spearman with the cost of removal", *scopes)
    for name, by_scope in sorted(found.items(), key=lambda item: -item[1][SCOPES[-1]].value):
        cells = (f"{by_scope[s].value:.3f}  [{by_scope[s].low:.3f}, {by_scope[s].high:.3f}]" for s in scopes)
        table.add_row(name, *cells)
    contexts = [scope for scope in next(iter(found.values())) if scope not in SCOPES]
    each = Table("Spearman by context", *contexts)
    for name in ("trust", "REAP", "trust - REAP"):
        cells = (f"{found[name][c].value:.3f}  [{found[name][c].low:.3f}, {found[name][c].high:.3f}]" for c in contexts)
        each.add_row(name, *cells)
    holds = Table(COVERAGE, *(c.context for c in covered))
    holds.add_row("hold", *(f"{c.share:.1%}" for c in covered))
    holds.add_row("the other texts say less", *(f"{c.too_high:.1%}" for c in covered))
    holds.add_row("the other texts say more", *(f"{c.too_low:.1%}" for c in covered))
    kept = Table("NLL per token, keeping the best by", "all", *(f"{share:.0%}" for share in KEPT_SHARES))
    for name, nll in curves.items():
        kept.add_row(name, *(f"{value:.3f}" for value in nll))
    for part in (table, each, holds, kept):
        console.print(part, highlight=False, markup=False)
    console.print(
        f"Run {run['name']}: {len(ablation.keys):,} experts, each removed on {len(ablation.contexts):,} texts "
        f"({int(ablation.predicted.sum()):,} predicted tokens) that the run has not scored; 90% bootstrap intervals. "
        f"Stored in v_validation. {evidence(run)}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
