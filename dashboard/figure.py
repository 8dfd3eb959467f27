"""A chart on a page: drawn for the page's theme, with what it shows as its alternative text. Charts are charts/."""

from typing import Any

import altair as alt
import streamlit as st

from dashboard import charts


def is_dark() -> bool:
    """Say whether the page is dark for the one who looks at it."""
    return bool(st.context.theme.type == "dark")


def draw(chart: alt.Chart | alt.LayerChart, *, key: str, title: str, finding: str, **options: Any) -> None:
    """Draw a chart that shows what `finding` says; `options` are those of Streamlit."""
    st.altair_chart(charts.themed(chart, dark=is_dark()), key=key, alt=f"{title}. {finding}", **options)
