"""What a chart shows, in one sentence computed from its rows. Names of figures and their forms are words.py."""

from collections.abc import Mapping, Sequence
from typing import Any

from dashboard import words

Rows = Sequence[Mapping[str, Any]]


def course(rows: Rows, field: str, name: str, form: str = ".2f") -> str:
    """Say where a figure began, where it stands, and between what it moved, phase by phase: they are not alike.

    >>> course([{"phase": "prefill", "x": 1}, {"phase": "prefill", "x": 2}, {"phase": "decode", "x": 9}], "x", "x", "d")
    'In prefill x began at 1 and stands at 2, between 1 and 2. In decode x began at 9 and stands at 9, between 9 and 9.'
    """
    phases = list(dict.fromkeys(row["phase"] for row in rows if row[field] is not None))
    if len(phases) < 2:
        said = moved(rows, field, name, form)
        return said[0].upper() + said[1:]
    return " ".join(
        f"In {phase} {moved([row for row in rows if row['phase'] == phase], field, name, form)}" for phase in phases
    )


def moved(rows: Rows, field: str, name: str, form: str = ".2f") -> str:
    """Say where a figure began, where it stands, and between what it moved."""
    values = [row[field] for row in rows if row[field] is not None]
    if not values:
        return f"there is no value of {name} yet."
    return (
        f"{name} began at {values[0]:{form}} and stands at {values[-1]:{form}}, "
        f"between {min(values):{form}} and {max(values):{form}}."
    )


def interval(rows: Rows) -> str:
    """Say whether trust has become surer."""
    if not rows:
        return "There is no score window yet."
    first, last = rows[0], rows[-1]
    before, now = first["trust_high"] - first["trust_low"], last["trust_high"] - last["trust_low"]
    return f"{moved(rows, 'trust', 'Trust')} Its 90% interval was {before:.2f} wide at first and is {now:.2f} now."


def residency_strip(rows: Rows, cap: int) -> str:
    """Say how long an expert was in memory."""
    if not rows:
        return "No load of this expert was logged."
    passes = sum(row["until"] - row["since"] for row in rows)
    cut = f" Only the first {cap} stays are drawn." if len(rows) == cap else ""
    return f"{len(rows)} stays in memory were logged, {passes / len(rows):.1f} passes long on average.{cut}"


def neighbours(rows: Rows) -> str:
    """Name who is picked with an expert most beyond chance."""
    if not rows:
        return "No pair was counted often enough (20 times) to tell."
    top = rows[0]
    return (
        f"Layer {top['layer']}, expert {top['expert']} ({top['where_']}) is picked with it "
        f"{top['lift']:.1f} times as often as chance would have it."
    )


def evidence(row: Mapping[str, Any]) -> str:
    """Say in words what an expert's trust rests on, and how it stands."""
    width = row["trust_high"] - row["trust_low"]
    sure = "narrow" if width < 0.2 else "wide"
    place = "above" if row["convergence"] >= 0.5 else "below"
    if row["uses"] == 0:
        return "It was never picked in this context: its trust is the prior's, not evidence."
    return (
        f"It was picked {row['uses']:,} times, in {row['blocks']:,} blocks of evidence. Its part in where the layer's "
        f"state ends up is {place} that of the median expert (convergence {row['convergence']:.2f}). "
        f"With 90% probability its trust lies between {row['trust_low']:.2f} and {row['trust_high']:.2f}: "
        f"a {sure} interval."
    )


def salience(rows: Rows) -> str:
    """Say where the greatest salience of a stream lies."""
    top = max(rows, key=lambda row: row["greatest"])
    where = (
        f"text {top['first_text']}"
        if top["first_text"] == top["last_text"]
        else (f"texts {top['first_text']} to {top['last_text']}")
    )
    return f"The most salient window has {top['greatest']:.2f}, in {where}."


def after(rows: Rows) -> str:
    """Say whether salient windows are followed by harder text than others."""
    known = {row["quarter"]: row["nll_after"] for row in rows if row["nll_after"] is not None}
    if len(known) < 2:
        return "There are too few windows to compare."
    top, low = known[max(known)], known[min(known)]
    word = "harder" if top > low else "easier"
    return (
        f"After the most salient quarter the next window costs {top:.2f} nats per token, after the least {low:.2f}: "
        f"text after salient moments is {word} by {abs(top - low):.2f}."
    )


def traffic(rows: Rows) -> str:
    """Say how much came and went."""
    loads = sum(row["events"] for row in rows if row["kind"] == "load")
    evictions = sum(row["events"] for row in rows if row["kind"] == "evict")
    waited = sum(row["waited_ms"] for row in rows)
    return f"{loads:,} loads and {evictions:,} evictions were logged; the model stood still for {waited / 1000:,.2f} s."


def regret(rows: Rows) -> str:
    """Say how many evictions were undone soon, and what that read again."""
    total = sum(row["evictions"] for row in rows)
    soon = sum(row["evictions"] for row in rows if row["place"] <= 2)
    again = [row for row in rows if row["place"] < 6]
    size = words.size(sum(row["bytes"] for row in again))
    return (
        f"{soon:,} of {total:,} evicted experts were loaded again within 4 passes; "
        f"all that came back read {size} again."
    )


def stayed(rows: Rows) -> str:
    """Say whether the experts of high trust were evicted less often for their uses."""
    rate = {row["quarter"]: row["evictions_per_1000_uses"] for row in rows}
    if rate.get(4) is None or rate.get(1) is None:
        return "There are too few evictions to compare."
    word = "less" if rate[4] < rate[1] else "no less"
    return (
        f"The most trusted quarter of each layer was evicted {rate[4]:.2f} times per 1,000 uses, the least trusted "
        f"{rate[1]:.2f}: {word} often."
    )


def validity(rows: Rows, scope: str) -> str:
    """Say what foretells best in a scope, and where trust stands."""
    ranked = [row for row in rows if not row["is_difference"]]
    best = max(ranked, key=lambda row: (row["rho"], row["statistic"] == "trust"))
    own = next((row for row in ranked if row["statistic"] == "trust"), None)
    text = f"{scope.capitalize()}, {best['statistic']} foretells best: {_rho(best)}."
    if own is not None and own is not best:
        clear = "a difference that the intervals confirm" if best["low"] > own["high"] else "the intervals overlap"
        text = f"{text} Trust has {_rho(own)}; {clear}."
    return " ".join([text, *(f"{row['statistic']}: {_rho(row)}." for row in rows if row["is_difference"])])


def coverage(rows: Rows) -> str:
    """Say how often the intervals of trust hold, against the share that they promise."""
    held = {words.context_label(row["context"]): words.share(row["share"]) for row in rows}
    return (
        "Of the 90% intervals of trust, this share held what the other texts said: "
        + ", ".join(f"{context} {share}" for context, share in held.items())
        + "."
    )


def what_if(at_own: Rows, floor: str) -> str:
    """Say what the run's setting cost beside the best policy's and the least possible, with the same budget."""
    own = next((row for row in at_own if row["is_own"]), None)
    if own is None:
        return "The curves do not hold the run's own setting."
    text = (
        f"With {own['budget_experts']:,} experts this run's {own['policy']} misses {own['miss_ratio']:.1%} "
        f"[{own['miss_ratio_low']:.1%}, {own['miss_ratio_high']:.1%}] of the accesses"
    )
    best = next(row for row in at_own if row["policy"] != floor)
    fewest = f"{best['policy']} misses the fewest, {best['miss_ratio']:.1%}"
    text = f"{text}; {'no other policy misses fewer' if best is own else fewest}"
    least = next((row for row in at_own if row["policy"] == floor), None)
    return f"{text}." if least is None else f"{text}; none could miss fewer than {least['miss_ratio']:.1%} (Belady)."


def worth_a_line(policies: Rows, familiar: Sequence[str]) -> list[str]:
    """Choose policies to look at first: the run's own, the one that misses least, and familiar ones."""
    own = [row["policy"] for row in policies if row["is_own"]]
    known = [row["policy"] for row in policies]
    return list(dict.fromkeys([*own, *known[:1], *(name for name in familiar if name in known)]))


def layers(rows: Rows) -> str:
    """Say which layer is narrowest, and how many experts are dead."""
    known = [row for row in rows if row["entropy_share"] is not None]
    if not known:
        return "No expert was used."
    low = min(known, key=lambda row: row["entropy_share"])
    dead = sum(row["dead"] for row in rows)
    never = "Every expert was used." if dead == 0 else f"{dead} {'was' if dead == 1 else 'were'} never used."
    return f"The narrowest layer is {low['layer']}, with {low['entropy_share']:.2f} of the greatest entropy. {never}"


def difference(rows: Rows, other: str) -> str:
    """Say how far apart two runs are."""
    if not rows:
        return f"{other} has none of these experts."
    first = rows[0]
    return (
        f"Over {first['pairs']:,} experts trust differs by {first['mean_change']:.3f} on average; "
        f"for {first['apart_total']:,} the 90% intervals do not overlap."
    )


def _rho(row: Mapping[str, Any]) -> str:
    return f"rho {row['rho']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def trust(cells: Rows) -> str:
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


def load(cells: Rows) -> str:
    """Say in one sentence what the map of load shows."""
    used = [cell for cell in cells if cell["load_log2"] is not None]
    if not used:
        return _unused(cells)
    top = max(used, key=lambda cell: cell["load_log2"])
    over = sum(cell["load_log2"] >= 1 for cell in used)
    return (
        f"The busiest expert ({_where(top)}) takes {2 ** top['load_log2']:.1f} times its fair share; "
        f"{over} of {len(cells):,} take at least twice theirs. {_unused(cells)}"
    )


def share(cells: Rows, field: str) -> str:
    """Say in one sentence what a map of a figure from 0 to 1 shows."""
    known = [cell for cell in cells if not cell["dead"] and cell[field] is not None]
    if not known:
        return f"No {field} is recorded. {_unused(cells)}"
    top = max(known, key=lambda cell: cell[field])
    low = min(known, key=lambda cell: cell[field])
    name = field.capitalize()
    return f"{name} runs from {low[field]:.2f} ({_where(low)}) to {top[field]:.2f} ({_where(top)}). {_unused(cells)}"


def change(cells: Rows) -> str:
    """Say in one sentence what a map of differences in trust shows."""
    known = [cell for cell in cells if cell["change"] is not None]
    if not known:
        return "The other run has none of these experts."
    top = max(known, key=lambda cell: abs(cell["change"]))
    return (
        f"Trust differs most at {_where(top)}, by {top['change']:+.2f}; "
        f"it is higher here for {sum(cell['change'] > 0 for cell in known)} of {len(known):,} experts."
    )


def cells(rows: Rows, colour: str) -> str:
    """Say in one sentence what a map of experts shows, by what it is coloured."""
    if colour == "trust":
        return trust(rows)
    if colour == "load":
        return load(rows)
    return change(rows) if colour == "difference" else share(rows, colour)


def _where(cell: Mapping[str, Any]) -> str:
    return f"layer {cell['layer']}, expert {cell['expert']}"


def _unused(cells: Rows) -> str:
    dead = sum(bool(cell["dead"]) for cell in cells)
    if dead == 0:
        return f"All {len(cells):,} experts were used."
    return f"{dead} of {len(cells):,} experts {'was' if dead == 1 else 'were'} never used (crossed out)."
