"""What a run has shown, read from the record alone and printed for people. What to ask the record is here, too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine, RowMapping

from observer.db.session import reading
from observer.errors import RunNotFound
from observer.observation import ALL
from observer.settled import Settled, settled
from observer.stats import layer_load
from segmoe.units import format_bytes

EXTREMES = 5
PLAIN_WIDTH = 120


class Report(NamedTuple):
    """The rows that a report is made of."""

    run: RowMapping
    residency: list[RowMapping]  # by phase
    trust: list[RowMapping]  # of context *, most trusted first
    contexts: list[RowMapping]
    settled: list[Settled]  # by layer


def read_report(engine: Engine, name: str | None = None) -> Report:
    """Read the named run, or the one started last, from one snapshot of the record."""
    with reading(engine).begin() as connection:

        def rows(sql: str, *values: Any) -> list[RowMapping]:
            return list(connection.exec_driver_sql(sql, values).mappings())

        runs = rows("SELECT *, (SELECT drops FROM run r WHERE r.run_id = v.run_id) AS drops, "
                    "(SELECT parity_lines FROM run r WHERE r.run_id = v.run_id) AS parity_lines "
                    "FROM v_run v ORDER BY run_id DESC")  # fmt: skip
        chosen = [run for run in runs if name is None or run["name"] == name]
        if not chosen:
            raise RunNotFound(name or "", [run["name"] for run in runs])
        run_id = chosen[0]["run_id"]
        return Report(
            run=chosen[0],
            residency=rows(
                "SELECT phase, SUM(passes) AS passes, SUM(tokens) AS tokens, SUM(hits) AS hits, "
                "SUM(misses) AS misses, SUM(loads) AS loads, SUM(evictions) AS evictions, "
                "SUM(bytes_read) AS bytes_read, SUM(wall_ns) AS wall_ns "
                "FROM v_window WHERE run_id = ? GROUP BY phase ORDER BY phase DESC",
                run_id,
            ),
            trust=rows(
                "SELECT * FROM v_expert_trust WHERE run_id = ? AND context = ? "
                "ORDER BY trust DESC, component, layer, expert",
                run_id,
                ALL,
            ),
            contexts=rows(
                "SELECT context, COUNT(*) AS texts, SUM(tokens) AS tokens, SUM(predicted) AS predicted, "
                "SUM(nll_sum) AS nll_sum FROM sequence WHERE run_id = ? GROUP BY context ORDER BY context",
                run_id,
            ),
            settled=settled(engine, chosen[0]["name"]),
        )


def print_report(report: Report, db: Path, console: Console | None = None) -> None:
    """Print the report; without boxes where stdout is no terminal."""
    console = Console() if console is None else console
    if not console.is_terminal:
        console.width = max(console.width, PLAIN_WIDTH)
    for part in _parts(report, db, framed=console.is_terminal):
        console.print(part, highlight=False, markup=False, soft_wrap=isinstance(part, str))


def _parts(report: Report, db: Path, *, framed: bool) -> list[str | Table]:
    run = report.run
    error = f": {run['error']}" if run["error"] else ""
    planned = f" of {run['sequences_planned']:,}" if run["sequences_planned"] else ""  # a loop has no end
    parts: list[str | Table] = [
        f"Run {run['name']}: {run['status']}{error}",
        f"Model {run['checkpoint']} ({run['model_family']}, digest {run['checkpoint_digest'][:12]})",
        f"Texts {run['sequences']:,}{planned}, tokens {run['tokens']:,} in all passes, "
        f"NLL {run['nll']:.3f} nats per token",
        f"Parity: {json.loads(run['parity_lines'])[-1]}",
        "",
        _residency(report, framed),
    ]
    parts += _residency_notes(report)
    parts += ["", _layers(report, framed), ""]
    for title, rows in (("Most", report.trust[:EXTREMES]), ("Least", report.trust[::-1][:EXTREMES])):
        parts += [_extremes(f"{title} trusted experts (against the model's median)", rows, framed), ""]
    parts += [_contexts(report, framed), "", *_settled(report)]
    parts.append(evidence(run))
    parts.append(f"Record: {db}")
    parts.append(f"Dashboard: python -m dashboard --db {db}  (or: make dashboard)")
    return parts


def evidence(run: Mapping[str, Any] | RowMapping) -> str:
    """Tell on how many events a run's statistics rest, and what was lost; `run` has the columns of v_run.

    >>> evidence({"events_seen": 1500, "events_dropped": 20, "drops": '{"queue full": 20}'})
    'Events: 1,500 seen, 20 dropped (20 queue full)'
    """
    drops = ", ".join(f"{count:,} {reason}" for reason, count in json.loads(run["drops"]).items())
    return f"Events: {run['events_seen']:,} seen, {run['events_dropped']:,} dropped{f' ({drops})' * bool(drops)}"


def _settled(report: Report) -> list[str]:
    """One line: is more text worth while?"""
    if not report.settled:
        return []
    rho, narrow = (np.mean([getattr(layer, name) for layer in report.settled]) for name in ("rho", "narrow"))
    least = min(report.settled, key=lambda layer: layer.rho)
    return [
        f"Settled: rankings now and at half the evidence agree by {rho:.3f} (mean Spearman of the layers; least "
        f"{least.rho:.3f}, {least.component} layer {least.layer}); {narrow:.0%} of the intervals are narrower than 0.2"
    ]


def _table(title: str, columns: str, framed: bool) -> Table:
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD if framed else None, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for index, column in enumerate(columns.split("|")):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    return table


def _residency(report: Report, framed: bool) -> Table:
    run = report.run
    title = (
        f"Experts in memory: at most {run['budget_experts']:,} ({format_bytes(run['budget_bytes'])}), {run['policy']}"
    )
    table = _table(title, "phase|passes|tokens|hit rate|loads|evictions|read|tokens/s", framed)
    for row in report.residency:
        table.add_row(
            row["phase"],
            f"{row['passes']:,}",
            f"{row['tokens']:,}",
            f"{row['hits'] / max(row['hits'] + row['misses'], 1):.1%}",
            f"{row['loads']:,}",
            f"{row['evictions']:,}",
            format_bytes(row["bytes_read"]),
            f"{row['tokens'] / max(row['wall_ns'] / 1e9, 1e-9):,.0f}",
        )
    return table


def _residency_notes(report: Report) -> list[str | Table]:
    """Say why the hit rate is low where one pass alone overflows the memory."""
    budget, notes = report.run["budget_experts"], list[str | Table]()
    for row in report.residency:
        touched = (row["hits"] + row["misses"]) / max(row["passes"], 1)
        if touched > budget and report.run["policy"] == "lru":
            notes.append(
                f"A {row['phase']} pass touches {touched:,.0f} experts on average and only {budget:,} fit: LRU has "
                "thrown an expert out before its next use, so its hit rate is low."
            )
    return notes


def _layers(report: Report, framed: bool) -> Table:
    table = _table("Layers", "layer|experts used|entropy (nats)|of ln N|dead", framed)
    uses: dict[tuple[str, int], dict[int, int]] = {}
    for row in report.trust:
        uses.setdefault((row["component"], row["layer"]), {})[row["expert"]] = row["uses"]
    for (component, layer), by_expert in sorted(uses.items()):
        load = layer_load(np.array([[by_expert[expert] for expert in sorted(by_expert)]], dtype=np.float64))
        table.add_row(
            f"{component} {layer}",
            f"{load.used[0]:.0f} of {len(by_expert)}",
            f"{load.entropy[0]:.3f}",
            f"{load.entropy_share[0]:.1%}",
            f"{load.dead[0]:.0f}",
        )
    return table


def _extremes(title: str, rows: list[RowMapping], framed: bool) -> Table:
    table = _table(title, "expert|trust|90% interval|uses|blocks", framed)
    for row in rows:
        table.add_row(
            f"{row['component']} layer {row['layer']} expert {row['expert']}",
            f"{row['trust']:.3f}",
            f"{row['trust_low']:.3f} - {row['trust_high']:.3f}",
            f"{row['uses']:,}",
            f"{row['blocks']:,}",
        )
    return table


def _contexts(report: Report, framed: bool) -> Table:
    table = _table("Contexts", "context|texts|tokens|NLL (nats per token)", framed)
    for row in report.contexts:
        nll = f"{row['nll_sum'] / row['predicted']:.3f}" if row["predicted"] else "-"
        table.add_row(row["context"], f"{row['texts']:,}", f"{row['tokens']:,}", nll)
    return table
