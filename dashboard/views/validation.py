"""Validation: how far the figures can be trusted, by what they foretold of removing experts."""

import pyarrow.compute as pc
import streamlit as st

from dashboard import charts, figure, findings, page, queries, states
from dashboard.connection import Mirror
from dashboard.queries import Run

_COLUMNS = {
    "scope": st.column_config.TextColumn("Scope", pinned=True),
    "statistic": st.column_config.TextColumn("Statistic", pinned=True),
    "rho": st.column_config.NumberColumn("rho", format="%.3f"),
    "low": st.column_config.NumberColumn("90% from", format="%.3f"),
    "high": st.column_config.NumberColumn("90% to", format="%.3f"),
    "n": st.column_config.NumberColumn("Experts removed", format="localized"),
    "texts": st.column_config.NumberColumn("Texts", format="localized"),
    "definition_version": st.column_config.NumberColumn("Version of trust"),
}


def render() -> None:
    """Draw the page. The run is in the URL."""
    mirror = page.begin("Validation")
    run = page.choose_run(mirror)
    page.follow(mirror, run.name, lambda run: _figures(mirror, run))


def _figures(mirror: Mirror, run: Run) -> None:
    rows = queries.validation(mirror, run.run_id)
    if not rows.num_rows:
        states.nothing(
            "This run was not validated.",
            "`observer validate` removes experts in turn from the stock model, measures what that costs on texts that "
            "the run has not seen, and writes here what each figure had foretold.",
        )
        return
    st.text(
        "Each expert was removed in turn from the stock model, and the cost was measured in next-token NLL on texts "
        "that the run had not scored. A figure that ranks the experts as that cost does has rho 1; one that knows "
        "nothing has 0."
    )
    if coverage := queries.coverage(mirror, run.run_id):
        st.text(findings.coverage(coverage))
    scopes = list(dict.fromkeys(rows["scope"].to_pylist()))
    for pair in (scopes[place : place + 2] for place in range(0, len(scopes), 2)):
        for column, scope in zip(st.columns(2), pair, strict=False):
            of_scope = rows.filter(pc.equal(rows["scope"], scope))
            finding = findings.validity(of_scope.to_pylist(), scope)
            of_scope = of_scope.filter(pc.invert(of_scope["is_difference"]))
            title = f"What foretells the cost of removal: {scope}"
            with column:
                figure.draw(
                    charts.validity(of_scope, title=title, finding=finding, share=0.5),
                    key=f"scope {scope}",
                    title=title,
                    finding=finding,
                )
    st.dataframe(
        rows.drop_columns("is_difference"),
        hide_index=True,
        column_config=_COLUMNS,
        alt=f"All {rows.num_rows} correlations, and differences of two, with intervals",
    )


if __name__ == "__main__":
    render()
