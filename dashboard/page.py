"""What pages have in common: the record, the choice of a run, its banner, and looking again while a run goes on."""

from collections.abc import Callable
from datetime import UTC, datetime

import streamlit as st

from dashboard import facts, queries, states, words
from dashboard.connection import Mirror
from dashboard.queries import Run

_LAST, _PAGE, _IS_NEW = "last run", "page", "page is new"
REFRESH_S = 4  # a window must be on the page within 5 s


def begin(title: str) -> Mirror:
    """Draw the title and bring the mirror up to date; stop the page where there is no record or no run in it."""
    st.title(title)
    st.session_state[_IS_NEW] = st.session_state.get(_PAGE) != title
    st.session_state[_PAGE] = title
    mirror = states.open_record()
    states.sync(mirror)
    if not queries.runs(mirror):
        states.no_runs(mirror.path)
    return mirror


def choose_run(mirror: Mirror, key: str = "run", label: str = "Run") -> Run:
    """Ask for a run; it is in the URL, the newest if it names none or one that is not there."""
    runs = {run.name: run for run in queries.runs(mirror)}
    last = st.session_state.get(_LAST)  # on this page or the one that one comes from
    otherwise = last if last in runs else next(iter(runs))
    # Not a default: a default stays out of the URL, and a link would follow whichever run is newest.
    # (On a new page the state still holds what the box of the page before had, and the address does not.)
    if key not in st.query_params and (st.session_state[_IS_NEW] or not st.session_state.get(key)):
        st.query_params[key] = otherwise
    name = st.selectbox(label, list(runs), index=None, placeholder=otherwise, key=key, bind="query-params", width=240)
    st.session_state[_LAST] = name or otherwise
    return runs[name or otherwise]


def choose_other_run(mirror: Mirror, run: Run, label: str, explanation: str | None = None) -> Run | None:
    """Ask for a second run, which may be none; it is in the URL."""
    runs = {other.name: other for other in queries.runs(mirror) if other.name != run.name}
    name = st.selectbox(
        label,
        list(runs),
        index=None,
        placeholder="none",
        key="other",
        bind="query-params",
        width=240,
        help=explanation,
    )
    return runs.get(name) if name else None


def choose_component(mirror: Mirror, run: Run) -> str:
    """Ask for a component where there are several."""
    components = sorted(set(queries.layers(mirror, run.run_id, queries.ALL_CONTEXTS)["component"].to_pylist()))
    if len(components) < 2:
        return components[0] if components else "model"
    chosen: str | None = st.selectbox("Component", components, key="component", bind="query-params", width=240)
    return chosen or components[0]


def follow(
    mirror: Mirror,
    name: str,
    draw: Callable[[Run], None],
    *,
    watch: Callable[[Run], object] = lambda run: None,
    header: bool = True,
) -> None:
    """Draw the figures of a run, and again every few seconds while it goes on; the rest of the page stays as it is.

    The whole page is drawn anew when the run begins or ends, or when what `watch` returns changes.
    """

    def state(run: Run) -> tuple[bool, object]:
        return run.is_live(datetime.now(UTC)), watch(run)

    run = _find(mirror, name)
    before = None if run is None else state(run)

    def figures() -> None:
        states.sync(mirror)
        run = _find(mirror, name)
        if run is None or state(run) != before:
            st.rerun()
        if header:
            facts.line(words.header(run, datetime.now(UTC)))
        banner(run)
        draw(run)

    st.fragment(figures, run_every=REFRESH_S if before and before[0] else None)()


def banner(run: Run) -> None:
    """Say what every figure of the run rests on, where that is not everything; and how it ended, if badly."""
    if run.events_dropped:
        st.warning(words.dropped(run), icon=":material/warning:")
    if run.parity == "different":
        st.error(words.DIFFERENT, icon=":material/error:")
    if run.error:
        st.error("The run ended with this error:", icon=":material/error:")
        st.code(run.error, language=None)


def _find(mirror: Mirror, name: str) -> Run | None:
    return next((run for run in queries.runs(mirror) if run.name == name), None)
