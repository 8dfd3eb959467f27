"""How figures and findings are put into words. All of it is plain text, never markup; drawing is charts.py."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from dashboard.queries import ALL_CONTEXTS, Run

UNKNOWN = "—"
DIFFERENT = "The output of this run's model differed from the stock model's: its figures are of another model."


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


def age(since: timedelta) -> str:
    """Say roughly how long ago something was.

    >>> age(timedelta(seconds=4)), age(timedelta(minutes=90)), age(timedelta(days=3, hours=2))
    ('4 s ago', '1 h ago', '3 d ago')
    """
    seconds = max(0, int(since.total_seconds()))
    for unit, factor in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= factor:
            return f"{seconds // factor} {unit} ago"
    return f"{seconds} s ago"


def progress(run: Run) -> str:
    """Say how many texts are done, of how many."""
    return f"{run.sequences:,} of {run.sequences_planned:,}" if run.sequences_planned else f"{run.sequences:,}"


def settings_that_differ(run: Run, other: Run) -> list[dict[str, str]]:
    """Name each setting, version or property in which two runs differ, with both values."""
    here, there = _settings(run), _settings(other)
    return [
        {"what": name, "this": here.get(name, UNKNOWN), "other": there.get(name, UNKNOWN)}
        for name in sorted({*here, *there})
        if here.get(name) != there.get(name)
    ]


def _settings(run: Run) -> dict[str, str]:
    found = {name: str(getattr(run, name)) for name in ("checkpoint_digest", "model_family", "policy", "capture")}
    found |= {"budget_experts": f"{run.budget_experts:,}"}
    for prefix, text in (("", run.config), ("version of ", run.versions)):
        try:
            values = json.loads(text)
        except ValueError:
            continue
        if isinstance(values, dict):
            found |= {
                f"{prefix}{name}": value if isinstance(value, str) else json.dumps(value)
                for name, value in values.items()
            }
    return found


def results(run: Run, other: Run) -> list[dict[str, str]]:
    """Name the results of two runs beside each other."""

    def row(what: str, show: Callable[[Run], str]) -> dict[str, str]:
        return {"what": what, "this": show(run), "other": show(other)}

    return [
        row("Tokens", lambda run: number(run.tokens, ",d")),
        row("Mean NLL", lambda run: number(run.nll)),
        row("Hit rate", lambda run: share(run.hit_rate)),
        row("Evictions", lambda run: number(run.evictions, ",d")),
        row("Read from disk", lambda run: size(run.bytes_read)),
        row("Parity", lambda run: run.parity),
        row("Events recorded", lambda run: share(run.recorded_frac)),
    ]


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


def moment(place: int, row: Mapping[str, Any]) -> list[Fact]:
    """Name the figures of one salient moment."""
    last = row["position"] + row["tokens"] - 1
    return [
        Fact("Moment", f"{place}"),
        Fact("Salience", number(row["salience"], ".2f"), "Mean of the five scores."),
        Fact("Driven by", row["driven_by"], "The score that is highest above its mean over the run."),
        Fact("Text", row["text_id"] or UNKNOWN),
        Fact("Context", row["context"] or UNKNOWN),
        Fact("Tokens", f"{row['position']:,} to {last:,}"),
        Fact("NLL before", number(row["nll_before"], ".2f"), "Nats per token, of the window before it."),
        Fact("NLL", number(row["nll"], ".2f"), "Nats per token, of its own window."),
        Fact("NLL after", number(row["nll_after"], ".2f"), "Nats per token, of the window after it."),
    ]


def quality(run: Run, now: datetime) -> list[Fact]:
    """Name what is known of how a run was recorded."""
    try:
        drops = json.loads(run.drops)
    except ValueError:
        drops = {}
    lost = ", ".join(f"{reason} {count:,}" for reason, count in drops.items()) if isinstance(drops, dict) else ""
    return [
        Fact("Events seen", number(run.events_seen, ",d"), "Events that the statistics rest on."),
        Fact("Not recorded", number(run.events_dropped, ",d"), "Events that they do not rest on."),
        Fact("Why", lost or UNKNOWN, "Dropped events by reason; a full queue means that the observer was too slow."),
        Fact("Capture", run.capture, "How much of each event was looked at."),
        *_queue(run),
        Fact("Heartbeat", age(now - run.heard_at()), "A job that is alive says so every few seconds."),
    ]


def _queue(run: Run) -> list[Fact]:
    """Name how full the queue between model and observer was; nothing of a run that did not tell."""
    if not run.queue_capacity:
        return []
    fullest = run.queue_most / run.queue_capacity
    return [
        Fact("Queue", f"{run.queue_events:,} events", "Waiting for the observer at the last heartbeat."),
        Fact("Fullest", f"{fullest:.0%} of {run.queue_capacity:,}", "Most that waited since the job was last started."),
        Fact(
            "Model waited", f"{run.waited_s:,.1f} s", "For a place in the full queue; a job loses no event, it waits."
        ),
    ]


def trace(row: Mapping[str, Any]) -> list[Fact]:
    """Name what is kept of the raw routing."""
    return [
        Fact("Files", number(row["files"], ",d")),
        Fact("Rows", number(row["rows"], ",d"), "One a token and layer."),
        Fact("Size", size(row["bytes"])),
        Fact("Passes", f"{row['first_step']:,} to {row['last_step']:,}"),
    ]


def dropped_runs(runs: Sequence[Run]) -> str | None:
    """Say of how many runs not all events were recorded; None if of none."""
    partial = [run.recorded_frac for run in runs if run.events_dropped and run.recorded_frac is not None]
    if not partial:
        return None
    return (
        f"Of {len(partial)} of {len(runs)} runs not all events were recorded: "
        f"the statistics of the worst rest on {share(min(partial))} of them."
    )


def dropped(run: Run) -> str:
    """Say what dropped events mean for every figure on the page."""
    total = run.events_seen + run.events_dropped
    return (
        f"{run.events_dropped:,} of {total:,} events were not recorded: "
        f"the statistics below rest on {share(run.recorded_frac)} of them."
    )


def tokens(count: float) -> str:
    """Name a number of tokens shortly.

    >>> tokens(900), tokens(12_300), tokens(4_500_000)
    ('900', '12.3 k', '4.5 M')
    """
    for letter, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {letter}"
    return f"{count:,.0f}"


def size(count: float) -> str:
    """Name a number of bytes.

    >>> size(512), size(7_500_000), size(54 * 2**30)
    ('512 B', '7.2 MiB', '54.0 GiB')
    """
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count:,.0f} B"
