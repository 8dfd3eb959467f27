"""Expert: one expert over the run, on one axis of tokens, and who goes with it. The map of all is expert_map.py."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import streamlit as st

from dashboard import charts, figure, findings, page, queries, states
from dashboard.connection import Mirror
from dashboard.queries import Run
from dashboard.views import expert_figures

_NEIGHBOURS = {
    "where_": st.column_config.TextColumn("Where"),
    "layer": st.column_config.NumberColumn("Layer"),
    "expert": st.column_config.NumberColumn("Expert"),
    "count": st.column_config.NumberColumn("Tokens that picked both", format="localized"),
    "lift": st.column_config.NumberColumn(
        "Lift", format="%.2f", help="Against independent picks of both; 1 is chance."
    ),
    "trust": st.column_config.ProgressColumn("Trust", min_value=0, max_value=1, format="%.3f"),
}


def render() -> None:
    """Draw the page. The run, the component, the layer and the expert are in the URL."""
    mirror = page.begin("Expert")
    with st.container(horizontal=True):
        run = page.choose_run(mirror)
        cells = queries.expert_map(mirror, run.run_id, queries.ALL_CONTEXTS)
        components = sorted(set(cells["component"].to_pylist()))
        chosen = expert_figures.choose(cells, components, on_change=lambda: None) if components else None
    if not cells.num_rows:
        page.follow(
            mirror, run.name, lambda run: states.no_trust(run.is_live(datetime.now(UTC))), watch=_has_trust(mirror)
        )
        return
    if chosen is None:
        page.banner(run)
        states.nothing("No expert is chosen.", "Choose a layer and an expert, or click a cell on the expert map.")
        st.page_link("views/expert_map.py", label="Go to the expert map")
        return
    page.follow(mirror, run.name, lambda run: _figures(mirror, run, chosen))


def _has_trust(mirror: Mirror) -> Any:
    return lambda run: bool(queries.contexts(mirror, run.run_id))


def _figures(mirror: Mirror, run: Run, chosen: expert_figures.Expert) -> None:
    rows = queries.expert(mirror, run.run_id, *chosen)
    expert_figures.draw(rows, queries.ALL_CONTEXTS)
    st.text(findings.evidence(rows[0]))
    with states.reading():
        history = queries.expert_history(mirror, run.run_id, *chosen)
    if history.num_rows:
        _course(history, queries.expert_residency(mirror, run.run_id, *chosen), chosen)
    else:
        states.no_windows(run.is_live(datetime.now(UTC)))
    st.subheader("In each context", anchor=False)
    expert_figures.draw_contexts(rows, chosen)
    st.subheader("Who is picked with it", anchor=False)
    neighbours = queries.neighbours(mirror, run.run_id, *chosen)
    finding = findings.neighbours(neighbours)
    st.text(finding)
    if neighbours:
        st.dataframe(
            neighbours, hide_index=True, column_config=_NEIGHBOURS, alt=f"Neighbours of {_name(chosen)}. {finding}"
        )


def _course(history: pa.Table, stays: pa.Table, chosen: expert_figures.Expert) -> None:
    rows = history.to_pylist()
    token = charts.Axis("token", "Tokens observed", (0, rows[-1]["token"]))

    def lines(
        name: str,
        finding: str,
        y: charts.Axis,
        *,
        of: Sequence[str] = (),
        by: str | None = None,
        band: tuple[str, str] | None = None,
    ) -> None:
        title = f"{name} of {_name(chosen)}, by score window"
        table = charts.long_form(history, "token", of) if of else history
        chart = charts.line(table, x=token, y=y, band=band, by="series" if of else by, title=title, finding=finding)
        figure.draw(chart, key=f"course {name}", title=title, finding=finding)

    lines(
        "Trust",
        findings.interval(rows),
        charts.Axis("trust", "Trust and its 90% interval", (0, 1), ".2f"),
        band=("trust_low", "trust_high"),
    )
    lines(
        "Parts of trust",
        findings.moved(rows, "convergence", "Convergence"),
        charts.Axis("value", "0 to 1", (0, 1), ".2f"),
        of=("convergence", "stability", "efficiency"),
    )
    lines(
        "Load",
        findings.course(rows, "load", "the load", ".2%"),
        charts.Axis("load", "Share of the layer's picks", None, ".1%"),
        by="phase",
    )
    lines(
        "Residency",
        findings.course(rows, "residency", "the share of passes that found it in memory"),
        charts.Axis("residency", "Share of the passes that wanted it and found it in memory", (0, 1), ".2f"),
        by="phase",
    )
    _stays(stays, token, chosen)
    lines(
        "Salience",
        findings.course(rows, "peak", "the greatest of its five shares"),
        charts.Axis("value", "Its share in the score, 0 to 1", (0, 1), ".2f"),
        of=charts.DIMENSIONS,
    )


def _stays(stays: pa.Table, token: charts.Axis, chosen: expert_figures.Expert) -> None:
    finding = findings.residency_strip(stays.to_pylist(), queries.RESIDENCY_STRIP_CAP)
    if not stays.num_rows:
        st.caption(finding)
        return
    title = f"Stays in memory of {_name(chosen)}"
    since = charts.Axis("since_token", token.title, token.domain)
    chart = charts.strip(stays, since=since, until="until_token", title=title, finding=finding)
    figure.draw(chart, key="course stays", title=title, finding=finding)


def _name(chosen: expert_figures.Expert) -> str:
    return f"layer {chosen.layer}, expert {chosen.expert} ({chosen.component})"


if __name__ == "__main__":
    render()
