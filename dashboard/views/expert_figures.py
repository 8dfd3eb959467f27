"""One expert: how it is chosen, and its figures in each context. The map of all experts is expert_map.py."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import streamlit as st

from dashboard import facts, words

_COLUMNS = {
    "context": st.column_config.TextColumn("Context", pinned=True),
    "trust": st.column_config.ProgressColumn("Trust", min_value=0, max_value=1, format="%.3f"),
    "trust_low": st.column_config.NumberColumn("90% from", format="%.3f"),
    "trust_high": st.column_config.NumberColumn("90% to", format="%.3f"),
    "convergence": st.column_config.NumberColumn("Convergence", format="%.3f"),
    "stability": st.column_config.NumberColumn("Stability", format="%.3f"),
    "efficiency": st.column_config.NumberColumn("Efficiency", format="%.3f"),
    "uses": st.column_config.NumberColumn("Uses", format="localized"),
    "blocks": st.column_config.NumberColumn("Blocks", format="localized"),
    "load": st.column_config.NumberColumn("Load", format="percent"),
    "weight_mean": st.column_config.NumberColumn("Mean weight", format="%.3f"),
    "ean": st.column_config.NumberColumn("EAN", format="%.1f"),
    "reap": st.column_config.NumberColumn("REAP", format="%.4f"),
    "impact_mean": st.column_config.NumberColumn("Impact", format="%.5f"),
}


class Expert(NamedTuple):
    """The key of an expert."""

    component: str
    layer: int
    expert: int


def choose(cells: pa.Table, components: list[str], on_change: Callable[[], None]) -> Expert | None:
    """Ask for an expert by widgets, which a click on the map or the URL may have filled in."""

    def number(key: str) -> int | None:
        options = sorted(set(of_component[key].to_pylist()))
        chosen: int | None = st.selectbox(
            key.capitalize(),
            options,
            index=None,
            placeholder="none",
            key=key,
            bind="query-params",
            on_change=on_change,
            width=160,
        )
        return chosen

    with st.container(horizontal=True, vertical_alignment="bottom"):
        component = components[0]
        if len(components) > 1:
            component = st.selectbox(
                "Component", components, key="component", bind="query-params", on_change=on_change, width=240
            )
        of_component = cells.filter(pc.equal(cells["component"], component))
        layer, expert = number("layer"), number("expert")
    return None if layer is None or expert is None else Expert(component, layer, expert)


def choose_clicked(component: str, components: list[str], layer: int, expert: int) -> None:
    """Put a clicked cell into the widgets; only a callback may, before they are drawn."""
    if len(components) > 1:
        st.session_state.component = component
    st.session_state.layer = layer
    st.session_state.expert = expert


def draw(rows: list[dict[str, Any]], context: str) -> None:
    """Draw the figures of one context; the box is there before an expert is chosen, so that the map stays in place."""
    row = next((row for row in rows if row["context"] == context), None)
    with st.container(border=True):
        if row is None:
            st.caption("Click a cell, or choose a layer and an expert, to see its figures.")
            return
        facts.line(words.expert(row))
        if row["uses"] == 0:
            st.caption("This expert was never used in this context: its trust is the prior's, not evidence.")


def link(run: str, chosen: Expert) -> None:
    """Link to the page of one expert, which shows it over the run."""
    query = {"run": run, "component": chosen.component, "layer": str(chosen.layer), "expert": str(chosen.expert)}
    st.page_link(
        "views/expert.py",
        label="This expert over the run",
        icon=":material/timeline:",
        query_params=query,
        help="Trust, load and memory over the run, salient moments, and who is picked with it.",
    )


def draw_contexts(rows: list[dict[str, Any]], chosen: Expert) -> None:
    """Draw the figures of each context as a table."""
    st.dataframe(
        [{**row, "context": words.context_label(row["context"])} for row in rows],
        hide_index=True,
        column_config=_COLUMNS,
        alt=f"Figures of layer {chosen.layer}, expert {chosen.expert}, one row per context",
    )
