"""The expert map: trust or load of every expert, layer by layer. One expert's figures are in expert_figures.py."""

from datetime import UTC, datetime
from functools import partial
from typing import get_args

import pyarrow as pa
import pyarrow.compute as pc
import streamlit as st

from dashboard import charts, facts, queries, states, words
from dashboard.connection import Mirror
from dashboard.views import expert_figures

REFRESH_S = 5
_FINDINGS = {"trust": words.trust_finding, "load": words.load_finding}


def render() -> None:
    """Draw the page. What is looked at is in the URL: run, context, colour, and component, layer, expert."""
    st.title("Expert map")
    mirror = states.open_record()
    with states.record_required():
        mirror.sync()
    runs = {run.name: run for run in queries.runs(mirror)}
    if not runs:
        states.no_runs(mirror.path)

    with st.container(horizontal=True, vertical_alignment="bottom"):
        newest = next(iter(runs))
        # Not a default: a default stays out of the URL, and a link would follow whichever run is newest.
        if "run" not in st.session_state and "run" not in st.query_params:
            st.query_params["run"] = newest
        name = st.selectbox(
            "Run", list(runs), index=None, placeholder=newest, key="run", bind="query-params", width=320
        )
        name = name or newest
        contexts = queries.contexts(mirror, runs[name].run_id)
        context = st.selectbox(
            "Context",
            contexts or [queries.ALL_CONTEXTS],
            format_func=words.context_label,
            key="context",
            bind="query-params",
            width=240,
            help="The corpus label of the texts that the figures rest on.",
        )
        colour = st.segmented_control(
            "Colour by",
            get_args(charts.Colour),
            default="trust",
            required=True,
            key="colour",
            bind="query-params",
        )
    live = runs[name].is_live(datetime.now(UTC))
    figures = st.fragment(_figures, run_every=REFRESH_S if live else None)
    figures(mirror, name, context, colour, drawn_for=(live, contexts))


def _figures(mirror: Mirror, name: str, context: str, colour: charts.Colour, drawn_for: tuple[bool, list[str]]) -> None:
    """Everything that changes while a run goes on; `drawn_for` is what the rest of the page was drawn for."""
    with states.record_required():
        mirror.sync()
    now = datetime.now(UTC)
    run = next((run for run in queries.runs(mirror) if run.name == name), None)
    if run is None or (run.is_live(now), queries.contexts(mirror, run.run_id)) != drawn_for:
        st.rerun()

    facts.line(words.header(run, now))
    if run.events_dropped:
        st.warning(words.dropped(run), icon=":material/warning:")
    if run.error:
        st.error("The run ended with this error:", icon=":material/error:")
        st.code(run.error, language=None)

    cells = queries.expert_map(mirror, run.run_id, context)
    if not cells.num_rows:
        states.no_trust(run.is_live(now))
        return
    components = sorted(set(cells["component"].to_pylist()))
    chosen = expert_figures.choose(cells, components, on_change=partial(_release_maps, components))
    rows = queries.expert(mirror, run.run_id, *chosen) if chosen else []
    expert_figures.draw(rows, context)
    for component in components:
        _map(cells.filter(pc.equal(cells["component"], component)), component, components, context, colour, chosen)
    if chosen and rows:
        expert_figures.draw_contexts(rows, chosen)


def _map(
    cells: pa.Table,
    component: str,
    components: list[str],
    context: str,
    colour: charts.Colour,
    chosen: expert_figures.Expert | None,
) -> None:
    finding = _FINDINGS[colour](cells.to_pylist())
    of_context = "all contexts" if context == queries.ALL_CONTEXTS else f"context {context}"
    title = f"{colour.capitalize()} of each expert: {component}, {of_context}"
    marked = charts.Cell(chosen.layer, chosen.expert) if chosen and chosen.component == component else None
    st.altair_chart(
        charts.expert_map(cells, colour=colour, title=title, finding=finding, marked=marked),
        key=_map_key(component),
        on_select=partial(_take_click, component, components),
        selection_mode=charts.CLICK,
        alt=f"{title}. {finding}",
    )


def _take_click(component: str, components: list[str]) -> None:
    clicked = st.session_state[_map_key(component)].selection[charts.CLICK]
    if clicked:
        expert_figures.choose_clicked(component, components, clicked[0]["layer"], clicked[0]["expert"])
        _release_maps([other for other in components if other != component])


def _map_key(component: str) -> str:
    return f"map {component} {st.session_state.get(f'releases {component}', 0)}"


def _release_maps(components: list[str]) -> None:
    """Make maps forget their click by a new identity: a map that holds a click does not report the same one again."""
    for component in components:
        held = st.session_state.get(_map_key(component))
        if held and held.selection[charts.CLICK]:
            st.session_state[f"releases {component}"] = st.session_state.get(f"releases {component}", 0) + 1
