"""The expert map: one figure of every expert, layer by layer. One expert's figures are in expert_figures.py."""

from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple, get_args

import pyarrow as pa
import pyarrow.compute as pc
import streamlit as st

from dashboard import charts, figure, findings, page, queries, states, words
from dashboard.connection import Mirror
from dashboard.queries import Run
from dashboard.views import expert_figures

_NOW = "now"


class _Look(NamedTuple):
    """What the map shows."""

    context: str
    colour: charts.Colour
    other: Run | None  # that the colour `difference` compares with
    window: int | None  # None: as things stand


def render() -> None:
    """Draw the page. What is looked at is in the URL: run, context, colour, window, and component, layer, expert."""
    mirror = page.begin("Expert map")
    with st.container(horizontal=True):
        run = page.choose_run(mirror)
        contexts = queries.contexts(mirror, run.run_id)
        context = st.selectbox(
            "Context",
            contexts or [queries.ALL_CONTEXTS],
            format_func=words.context_label,
            key="context",
            bind="query-params",
            width=200,
            help="The corpus label of the texts that the figures rest on.",
        )
        colour = st.segmented_control(
            "Colour by", get_args(charts.Colour), default="trust", required=True, key="colour", bind="query-params"
        )
        other = page.choose_other_run(mirror, run, "Difference to") if colour == "difference" else None
        window = _choose_window(mirror, run, context, colour)
    look = _Look(context, colour, other, window)
    page.follow(
        mirror,
        run.name,
        lambda run: _figures(mirror, run, look),
        watch=lambda run: queries.contexts(mirror, run.run_id),
    )


def _choose_window(mirror: Mirror, run: Run, context: str, colour: charts.Colour) -> int | None:
    """Ask for a score window; they are known for all contexts together, and for the run itself alone."""
    indexes = [str(index) for index in queries.windows(mirror, run.run_id)["window_index"].to_pylist()]
    if len(indexes) < 2 or context != queries.ALL_CONTEXTS or colour == "difference":
        return None
    chosen = st.select_slider(
        "Score window",
        [*indexes, _NOW],
        value=_NOW,
        key="window",
        bind="query-params",
        width=240,
        help="Trust as it stood at the window's end; load, uses and residency in the window alone.",
    )
    return None if chosen == _NOW else int(chosen)


def _figures(mirror: Mirror, run: Run, look: _Look) -> None:
    if look.window is None:
        cells = queries.expert_map(mirror, run.run_id, look.context)
    else:
        with states.reading():
            cells = queries.expert_map_at(mirror, run.run_id, look.window)
    if not cells.num_rows and look.window is not None:
        states.nothing("No figures of single experts are recorded for this score window.", "Choose another, or now.")
        return
    if not cells.num_rows:
        states.no_trust(run.is_live(datetime.now(UTC)))
        return
    if look.colour == "difference":
        if look.other is None:
            states.nothing("There is no run to compare with.", "Choose the other run above.")
            return
        other = queries.expert_difference(mirror, run.run_id, look.other.run_id, look.context)
        cells = cells.append_column("change", other["change"])  # both are in the order of the experts
    if look.colour == "residency" and look.window is None:
        cells = cells.append_column("residency", queries.residencies(mirror, run.run_id)["residency"])
    components = sorted(set(cells["component"].to_pylist()))
    chosen = expert_figures.choose(cells, components, on_change=partial(_release_maps, components))
    rows = queries.expert(mirror, run.run_id, *chosen) if chosen else []
    expert_figures.draw(rows, look.context)
    if chosen and rows:
        expert_figures.link(run.name, chosen)
    layers = queries.layers(mirror, run.run_id, look.context)
    for component in components:
        left, right = st.columns([4, 1])
        with left:
            _map(cells.filter(pc.equal(cells["component"], component)), component, components, look, chosen)
        with right:
            _margins(layers.filter(pc.equal(layers["component"], component)), component)
    if chosen and rows:
        expert_figures.draw_contexts(rows, chosen)


def _map(
    cells: pa.Table, component: str, components: list[str], look: _Look, chosen: expert_figures.Expert | None
) -> None:
    finding = findings.cells(cells.to_pylist(), look.colour)
    scope = "all contexts" if look.context == queries.ALL_CONTEXTS else f"context {look.context}"
    if look.window is not None:
        scope = f"score window {look.window}"
    if look.other is not None:
        scope = f"{scope}, against {look.other.name}"
    title = f"{look.colour.capitalize()} of each expert: {component}, {scope}"
    marked = charts.Cell(chosen.layer, chosen.expert) if chosen and chosen.component == component else None
    figure.draw(
        charts.expert_map(
            cells, colour=look.colour, title=title, finding=finding, marked=marked, dark=figure.is_dark()
        ),
        key=_map_key(component),
        title=title,
        finding=finding,
        on_select=partial(_take_click, component, components),
        selection_mode=charts.CLICK,
    )


def _margins(layers: pa.Table, component: str) -> None:
    finding = findings.layers(layers.to_pylist())
    figure.draw(
        charts.layer_margins(layers),
        key=f"margins {component}",
        title=f"Evenness of use and dead experts of each layer: {component}",
        finding=finding,
    )
    st.caption(finding)


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


if __name__ == "__main__":
    render()
