"""SQL: the named questions and free SQL, with the schema beside it. Running it is console.py."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import streamlit as st

from dashboard import page, queries, questions, schema, states, words
from dashboard.connection import Mirror
from dashboard.console import Answer, Console
from dashboard.console_worker import BYTES, ROWS, SECONDS

LIMITS = (
    f"Reads only: one SELECT or EXPLAIN, at most {SECONDS} s, {ROWS:,} rows and {words.size(BYTES)} of them; "
    "no files, no network. The query and its parameters are in the address, so that a link shows the same."
)


@st.cache_data(max_entries=16, show_spinner="Asking the record")
def _answer(_console: Console, path: str, version: int, sql: str, parameters: dict[str, Any]) -> Answer:
    """Ask, or return what was answered at the same version of the record."""
    return _console.run(sql, parameters)


def render() -> None:
    """Draw the page. The question or the query, and its parameters, are in the URL."""
    mirror = page.begin("SQL")
    if said := words.dropped_runs(queries.runs(mirror)):
        st.warning(said, icon=":material/warning:")
    named = questions.questions(questions.folder())
    left, right = st.columns([3, 1], gap="large")
    with right:
        _schema(mirror)
    with left:
        st.selectbox(
            "Question",
            list(named),
            index=None,
            placeholder="your own",
            key="question",
            bind="query-params",
            on_change=_take_question,
            args=(named,),
            width=320,
        )
        # Always there, so that what is below it stays in place.
        st.caption(named[st.session_state.question].title if st.session_state.question else "Your own query.")
        if st.session_state.question and not st.session_state.get("sql") and "sql" not in st.query_params:
            st.session_state.sql = named[st.session_state.question].sql
        sql = st.text_area(
            "SQL, in DuckDB's dialect",
            key="sql",
            bind="query-params",
            height=260,
            placeholder="select name, tokens, nll from v_run order by nll",
            help="Ctrl+Enter runs it.",
        )
        parameters = _parameters(mirror, sql)
        st.button("Run")  # leaving the text area has already taken the query
        st.caption(LIMITS)
        if sql.strip():
            console = states.open_console(mirror)
            with states.reading() as progress:
                console.copy(sql, progress)
            _result(_answer(console, str(mirror.path), mirror.version, sql, parameters), sql)
        else:
            st.info("Choose a question, or write a query over the views listed beside it.", icon=":material/info:")


def _take_question(named: dict[str, questions.Question]) -> None:
    if st.session_state.question:
        st.session_state.sql = named[st.session_state.question].sql


def _parameters(mirror: Mirror, sql: str) -> dict[str, Any]:
    """Ask for the values of the query's parameters; a run is chosen by its name."""
    values: dict[str, Any] = {}
    names = questions.parameters(sql)
    if names:
        with st.container(horizontal=True, vertical_alignment="bottom"):
            for name in names:
                if name == "run_id":
                    values[name] = page.choose_run(mirror).run_id
                elif name == "other_id":
                    newest = queries.runs(mirror)[0]
                    values[name] = (page.choose_other_run(mirror, newest, "Other run") or newest).run_id
                else:
                    text = st.text_input(f"${name}", key=f"p_{name}", bind="query-params", width=240)
                    values[name] = questions.value(text)
    return values


def _result(answer: Answer, sql: str) -> None:
    if answer.table is None:
        st.error("The query was not answered:", icon=":material/error:")
        st.code(answer.error, language=None)
        return
    table = answer.table
    if not answer.is_all:
        st.warning(
            f"There is more: these are the first {table.num_rows:,} rows. Filter, aggregate, or add a LIMIT.",
            icon=":material/content_cut:",
        )
    columns = ", ".join(table.column_names)
    st.dataframe(table, hide_index=True, alt=f"Result of the query: {table.num_rows:,} rows of {columns}")
    with st.container(horizontal=True, vertical_alignment="center"):
        st.text(f"{table.num_rows:,} rows")
        st.download_button("CSV", lambda: _csv(table), "answer.csv", "text/csv", on_click="ignore")
        st.download_button(
            "Parquet", lambda: _parquet(table), "answer.parquet", "application/vnd.apache.parquet", on_click="ignore"
        )


def _csv(table: pa.Table) -> bytes:
    """Write CSV; what is not a plain value is written as its text."""
    columns = [
        column if not pa.types.is_nested(column.type) else pa.array([str(value) for value in column.to_pylist()])
        for column in table.columns
    ]
    sink = io.BytesIO()
    pa.csv.write_csv(pa.table(columns, names=table.column_names), sink)
    return sink.getvalue()


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pa.parquet.write_table(table, sink)
    return sink.getvalue()


def _schema(mirror: Mirror) -> None:
    st.subheader("Views", anchor=False)
    for view in schema.describe(mirror.definitions):
        with st.expander(view.name):
            st.text(view.about)
            st.dataframe(
                [{"column": column.name, "type": column.kind, "meaning": column.about} for column in view.columns],
                hide_index=True,
                height=min(38 + 35 * len(view.columns), 300),
                alt=f"Columns of {view.name}",
            )


if __name__ == "__main__":
    render()
