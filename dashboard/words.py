"""How figures and findings are put into words. All of it is plain text, never markup; drawing is charts.py."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from dashboard.queries import ALL_CONTEXTS, Run

UNKNOWN = "—"


class Fact(NamedTuple):
    """One figure with its name, as text."""

    label: str
    value: str
    meaning: str | None = None


def context_label(context: str) -> str:
    """Name a context for people; a corpus label that happens to read "all" stays apart.

    >>> context_label("*"), context_label("code"), context_label("all")
    ('all', 'code', 'all (label)')
    """
    if context == ALL_CONTEXTS:
        return "all"
    return "all (label)" if context == "all" else context


def number(value: float | None, form: str = ".3f") -> str:
    """Format a figure, or say that it is not known.

    >>> number(0.5), number(None), number(1234567, ",d")
    ('0.500', '—', '1,234,567')
    """
    return UNKNOWN if value is None else format(value, form)


def share(value: float | None) -> str:
    """Format a share as per cent, never rounding a part up to the whole.

    >>> share(0.5), share(1.0), share(0.99996), share(None)
    ('50.0%', '100%', '99.9%', '—')
    """
    if value is None:
        return UNKNOWN
    return "100%" if value == 1 else f"{min(100 * value, 99.9):.1f}%"


def status(run: Run, now: datetime) -> str:
    """Say how the run stands, without calling a silent one running."""
    if run.status != "started":
        return run.status
    if run.is_live(now):
        return "running"
    since = run.heartbeat_at or run.started_at
    return f"unfinished (no heartbeat since {since[:19].replace('T', ' ')} UTC)"


def header(run: Run, now: datetime) -> list[Fact]:
    """Name the facts of a run's header line."""
    return [
        Fact("Run", run.name),
        Fact("Status", status(run, now)),
        Fact("Tokens", number(run.tokens, ",d")),
        Fact("Mean NLL", number(run.nll), "Nats per predicted token."),
        Fact("Hit rate", share(run.hit_rate), "Share of expert fetches that found the expert in memory."),
        Fact("Parity", run.parity, "Was the output equal to the stock model's?"),
        Fact("Events recorded", share(run.recorded_frac), "The share that all statistics here rest on."),
    ]


def expert(row: Mapping[str, Any]) -> list[Fact]:
    """Name the figures of one expert in one context."""
    interval = f"{row['trust_low']:.3f} to {row['trust_high']:.3f}"
    return [
        Fact(
            "Trust",
            number(row["trust"]),
            "How much of the model's state is its doing; since version 2 the same as convergence.",
        ),
        Fact("90% interval", interval),
        Fact("Convergence", number(row["convergence"]), "How much of where the state ends up is this expert's doing."),
        Fact("Stability", number(row["stability"]), "How steady its impact per use is from window to window."),
        Fact("Efficiency", number(row["efficiency"]), "Impact per use and byte, against the median expert."),
        Fact("Uses", number(row["uses"], ",d")),
        Fact("Blocks", number(row["blocks"], ",d"), "Blocks of tokens: the unit of evidence."),
        Fact("Load", number(row["load"], ".2%"), "Share of the layer's picks."),
        Fact("Mean weight", number(row["weight_mean"])),
        Fact("EAN", number(row["ean"], ",.1f"), "Sum of the norms of its outputs."),
        Fact("REAP", number(row["reap"], ".4f"), "Mean of routing weight times norm of output."),
        Fact(
            "Impact",
            number(row["impact_mean"], ".5f"),
            "Per token of the layer: 1 - cos(state, state without it).",
        ),
    ]


def dropped(run: Run) -> str:
    """Say what dropped events mean for every figure on the page."""
    total = run.events_seen + run.events_dropped
    return (
        f"{run.events_dropped:,} of {total:,} events were not recorded: "
        f"the statistics below rest on {share(run.recorded_frac)} of them."
    )


def trust_finding(cells: Sequence[Mapping[str, Any]]) -> str:
    """Say in one sentence what the map of trust shows."""
    used = [cell for cell in cells if not cell["dead"]]
    if not used:
        return _unused(cells)
    top = max(used, key=lambda cell: cell["trust"])
    low = min(used, key=lambda cell: cell["trust"])
    return (
        f"Trust runs from {low['trust']:.2f} ({_where(low)}) to {top['trust']:.2f} ({_where(top)}, "
        f"90% interval {top['trust_low']:.2f} to {top['trust_high']:.2f}). {_unused(cells)}"
    )


def load_finding(cells: Sequence[Mapping[str, Any]]) -> str:
    """Say in one sentence what the map of load shows."""
    used = [cell for cell in cells if cell["load_log2"] is not None]
    if not used:
        return _unused(cells)
    top = max(used, key=lambda cell: cell["load_log2"])
    over = sum(cell["load_log2"] >= 1 for cell in used)
    return (
        f"The busiest expert ({_where(top)}) takes {2 ** top['load_log2']:.1f} times its fair share; "
        f"{over} of {len(cells)} take at least twice theirs. {_unused(cells)}"
    )


def _where(cell: Mapping[str, Any]) -> str:
    return f"layer {cell['layer']}, expert {cell['expert']}"


def _unused(cells: Sequence[Mapping[str, Any]]) -> str:
    dead = sum(bool(cell["dead"]) for cell in cells)
    if dead == 0:
        return f"All {len(cells)} experts were used."
    return f"{dead} of {len(cells)} experts {'was' if dead == 1 else 'were'} never used (crossed out)."
