"""Residency: what came into memory and left it, why, whether that was regretted, and what else might have been."""

import streamlit as st

from dashboard import charts, figure, findings, page, queries, states
from dashboard.connection import Mirror
from dashboard.queries import Run
from dashboard.views import course, what_if
from dashboard.views.course import Course

_REASONS = {
    "kind": st.column_config.TextColumn("Kind"),
    "reason": st.column_config.TextColumn("Reason"),
    "events": st.column_config.NumberColumn("Events", format="localized"),
    "mib": st.column_config.NumberColumn("Bytes, MiB", format="%.1f"),
    "read_s": st.column_config.NumberColumn("Reading, s", format="%.2f"),
    "waited_s": st.column_config.NumberColumn("Model stood still, s", format="%.2f"),
    "idle_passes": st.column_config.NumberColumn("Idle passes before", format="%.1f", help="Of evictions, the mean."),
    "policy_score": st.column_config.NumberColumn("Policy's score", format="%.3f", help="Of evictions, the mean."),
}
_QUARTERS = {
    "quarter": st.column_config.NumberColumn("Quarter of trust", help="Within each layer; 4 is the most trusted."),
    "experts": st.column_config.NumberColumn("Experts", format="localized"),
    "trust": st.column_config.NumberColumn("Mean trust", format="%.3f"),
    "uses": st.column_config.NumberColumn("Uses", format="localized"),
    "evictions": st.column_config.NumberColumn("Evictions", format="localized"),
    "evictions_per_1000_uses": st.column_config.NumberColumn("Per 1,000 uses", format="%.2f"),
    "came_back": st.column_config.NumberColumn("Came back", format="percent"),
}


def render() -> None:
    """Draw the page. The run is in the URL."""
    mirror = page.begin("Residency")
    run = page.choose_run(mirror)
    page.follow(mirror, run.name, lambda run: _figures(mirror, run))


def _figures(mirror: Mirror, run: Run) -> None:
    found = "Share of fetches that found the expert in memory"
    courses = (
        Course("hit_rate", "the hit rate", "Hit rate by score window", found, (0.0, 1.0)),
        Course("evictions_per_1000", "churn", "Churn by score window", "Evictions per 1,000 tokens", form=",.0f"),
    )
    if not course.draw(mirror, run, courses):
        return
    _events(mirror, run)
    st.subheader("What if", anchor=False)
    what_if.draw(mirror, run)


def _events(mirror: Mirror, run: Run) -> None:
    traffic = queries.residency_by_step(mirror, run.run_id)
    if not traffic.num_rows:
        states.nothing(
            "No load or eviction of this run was logged one by one.",
            "Runs log the first of them, unless `--residency-events 0` was set.",
        )
        return
    rows = traffic.to_pylist()
    finding = findings.traffic(rows)
    title = f"Loads and evictions, in stretches of {rows[0]['width']:,} passes"
    figure.draw(
        charts.columns(
            traffic,
            x=charts.Axis("step", "Forward pass", None, ",d"),
            y=charts.Axis("events", "Logged events", None, "~s"),
            by="kind",
            title=title,
            finding=finding,
        ),
        key="traffic",
        title=title,
        finding=finding,
    )
    st.dataframe(
        queries.reasons(mirror, run.run_id),
        hide_index=True,
        column_config=_REASONS,
        placeholder="",
        alt=f"Reasons. {finding}",
    )
    left, right = st.columns(2)
    regret = queries.regret(mirror, run.run_id)
    with left:
        if regret.num_rows:
            finding, title = (
                findings.regret(regret.to_pylist()),
                "Regret: evictions by how soon the expert was loaded again",
            )
            figure.draw(
                charts.counted(
                    regret,
                    name="back_after",
                    value="evictions",
                    value_title="Logged evictions",
                    title=title,
                    finding=finding,
                    share=0.5,
                ),
                key="regret",
                title=title,
                finding=finding,
            )
        else:
            st.caption("Nothing was evicted.")
    with right:
        quarters = queries.trust_of_evicted(mirror, run.run_id)
        finding = findings.stayed(quarters)
        st.text(finding)
        st.dataframe(quarters, hide_index=True, column_config=_QUARTERS, alt=f"Evictions by trust. {finding}")


if __name__ == "__main__":
    render()
