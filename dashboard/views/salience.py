"""Salience: the stream over a run, its moments with their text where that was kept, and what followed them."""

from datetime import UTC, datetime
from typing import Any

import streamlit as st

from dashboard import charts, facts, figure, findings, page, queries, states, words
from dashboard.connection import Mirror
from dashboard.queries import Run

_MOST = (5, 10, 20, 50)
_ANY = "any"


def render() -> None:
    """Draw the page. The run, the component and the filters are in the URL."""
    mirror = page.begin("Salience")
    with st.container(horizontal=True):
        run = page.choose_run(mirror)
        component = page.choose_component(mirror, run)
        contexts = queries.contexts(mirror, run.run_id) or [queries.ALL_CONTEXTS]
        context = st.selectbox(
            "Context", contexts, format_func=words.context_label, key="context", bind="query-params", width=200
        )
        driven_by = st.selectbox(
            "Driven by",
            [_ANY, *charts.DIMENSIONS],
            key="driven_by",
            bind="query-params",
            width=160,
            help="The score that is highest above its mean over the run.",
        )
        most = st.segmented_control("Moments", _MOST, default=_MOST[0], required=True, key="most", bind="query-params")
    driver = "" if driven_by == _ANY else driven_by
    page.follow(mirror, run.name, lambda run: _figures(mirror, run, component, context, driver, most))


def _figures(mirror: Mirror, run: Run, component: str, context: str, driven_by: str, most: int) -> None:
    stream = queries.salience_stream(mirror, run.run_id, component)
    if not stream.num_rows:
        if run.is_live(datetime.now(UTC)):
            states.nothing("No salience is recorded yet.", "It needs a first text; the page refreshes by itself.")
        else:
            states.nothing(
                "This run holds no salience.", "Record it with `observer run` at capture level `contribution`."
            )
        return
    finding = findings.salience(stream.to_pylist())
    title = f"Salience of {component} over the run, text after text"
    figure.draw(
        charts.envelope(
            stream,
            x=charts.Axis("part", "Stretch of the run, in the order of the texts", (1, stream.num_rows), "d"),
            least="least",
            greatest="greatest",
            last=charts.Axis("last", "Salience: least to greatest, and last", (0, 1), ".2f"),
            title=title,
            finding=finding,
        ),
        key="stream",
        title=title,
        finding=finding,
    )
    _after(mirror, run, component)
    st.subheader("The most salient moments", anchor=False)
    moments = queries.moments(mirror, run.run_id, component, context=context, driven_by=driven_by, most=most)
    if not moments:
        states.nothing("No moment passes these filters.", "Choose another context, or any driver.")
    for place, moment in enumerate(moments, start=1):
        _moment(place, moment)


def _after(mirror: Mirror, run: Run, component: str) -> None:
    rows = queries.after(mirror, run.run_id, component)
    finding = findings.after(rows)
    title = "NLL before, in and after windows, by quarter of salience (4 = most salient)"
    figure.draw(
        charts.grouped(
            rows,
            {"nll_before": "window before", "nll": "window itself", "nll_after": "window after"},
            group="quarter",
            group_title="Quarter of salience",
            value_title="Nats per predicted token",
            title=title,
            finding=finding,
        ),
        key="after",
        title=title,
        finding=finding,
    )


def _moment(place: int, moment: dict[str, Any]) -> None:
    with st.container(border=True):
        left, right = st.columns([3, 2])
        with left:
            facts.line(words.moment(place, moment))
            if moment["text"]:
                st.text(moment["text"])
            else:
                st.caption("Its text is not in the record; `observer run --keep-text` keeps it.")
        scores = ", ".join(f"{name} {moment[name]:.2f}" for name in charts.DIMENSIONS)
        with right:
            figure.draw(
                charts.five(moment, title="Its five scores, 0 to 1"),
                key=f"moment {place}",
                title=f"Scores of moment {place}, 0 to 1",
                finding=f"{scores}; driven by {moment['driven_by']}.",
            )


if __name__ == "__main__":
    render()
