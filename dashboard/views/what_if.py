"""What if: what other policies and budgets would have cost. What the run did cost is residency.py."""

import shlex

import streamlit as st

from dashboard import charts, figure, findings, queries
from dashboard.connection import Mirror
from dashboard.queries import Run

_PASSES = {"all": "all passes", "prefill": "prefill", "decode": "decode"}
_LINES = 5  # at once: more are not told apart
_FAMILIAR = ("lru", "lfu")
_COLUMNS = {
    "policy": st.column_config.TextColumn("Policy", pinned=True),
    "miss_ratio": st.column_config.NumberColumn("Miss ratio", format="%.3f"),
    "miss_ratio_low": st.column_config.NumberColumn("90% from", format="%.3f"),
    "miss_ratio_high": st.column_config.NumberColumn("90% to", format="%.3f"),
    "mib": st.column_config.NumberColumn("Read, MiB", format="%.1f"),
    "read_s": st.column_config.NumberColumn(
        "Reading, s", format="%.2f", help="Estimate: all reads one after the other, at the disk's rate."
    ),
    "evictions": st.column_config.NumberColumn("Evictions", format="localized"),
    "reloads_soon": st.column_config.NumberColumn(
        "Needed again soon", format="localized", help="Evictions whose expert was needed again within a few tokens."
    ),
}


def draw(mirror: Mirror, run: Run) -> None:
    """Draw the curves, and the table of all policies with the run's own budget; or say how to make them."""
    phases = queries.what_if_phases(mirror, run.run_id)
    if not phases:
        _missing(mirror, run)
        return
    with st.container(horizontal=True):
        phase = st.segmented_control(
            "Passes",
            phases,
            format_func=lambda phase: _PASSES.get(phase, phase),
            default=phases[0],
            required=True,
            key="phase",
            bind="query-params",
        )
        policies = queries.what_if_policies(mirror, run.run_id, phase)
        chosen = st.multiselect(
            "Policies",
            [row["policy"] for row in policies],
            default=findings.worth_a_line(policies, _FAMILIAR),
            max_selections=_LINES,
            key="policies",
            bind="query-params",
            help="In the order of their misses over all budgets. Belady, who knows the future, is always drawn.",
        )
    at_own = queries.what_if_at_own(mirror, run.run_id, phase)
    finding = findings.what_if(at_own, charts.FLOOR)
    title = f"Miss ratio by policy and budget, {_PASSES.get(phase, phase)}"
    figure.draw(
        charts.miss_ratio_curves(
            queries.what_if(mirror, run.run_id, phase), chosen, title=title, finding=finding, dark=figure.is_dark()
        ),
        key="what if",
        title=title,
        finding=finding,
    )
    if at_own:
        budget = f"{at_own[0]['budget_experts']:,}"
        st.caption(f"All policies with this run's budget of {budget} experts")
        st.dataframe(
            [{name: row[name] for name in _COLUMNS} for row in at_own],
            hide_index=True,
            column_config=_COLUMNS,
            alt=f"All policies with {budget} experts in memory, the fewest misses first. {finding}",
        )


def _missing(mirror: Mirror, run: Run) -> None:
    """Say which command makes the curves, and what it needs."""
    if queries.trace(mirror, run.run_id):
        st.info(
            "What other policies and budgets would have cost, and the least that any could (Belady), is replayed from "
            "the run's trace. Make it with:",
            icon=":material/info:",
        )
        st.code(shlex.join(["observer", "plan", "--db", str(mirror.path), "--run", run.name]), language=None)
    else:
        st.info(
            "What other policies and budgets would have cost is replayed from a run's trace, and this run kept none. "
            "Record one with `observer run --trace`, then `observer plan`.",
            icon=":material/info:",
        )
