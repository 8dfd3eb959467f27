"""Figures side by side: intervals, counts, and the five scores of a moment."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pyarrow as pa

from dashboard.charts.furniture import GREY, MAIN, PARTS, heading, level, series

DIMENSIONS = ("surprise", "novelty", "arousal", "reward", "conflict")
_ROW = 26  # pixels


def validity(rows: pa.Table, *, title: str, finding: str, share: float = 1) -> alt.LayerChart:
    """Draw Spearman's rho of each statistic with its 90% interval, a row per statistic."""
    order = [name for name in dict.fromkeys(rows["statistic"].to_pylist())]
    base = alt.Chart(rows).encode(
        y=alt.Y("statistic:N", title=None, sort=order, axis=alt.Axis(labelLimit=240)),
        tooltip=[
            alt.Tooltip("statistic:N", title="Statistic"),
            alt.Tooltip("rho:Q", title="rho", format=".3f"),
            alt.Tooltip("low:Q", title="90% from", format=".3f"),
            alt.Tooltip("high:Q", title="90% to", format=".3f"),
            alt.Tooltip("n:Q", title="Experts removed", format=",d"),
            alt.Tooltip("texts:Q", title="Texts", format=",d"),
        ],
    )
    x = alt.X(
        "low:Q", title="Spearman's rho with the cost of removal, and its 90% interval", scale=alt.Scale(domain=[-1, 1])
    )
    interval = base.mark_rule(strokeWidth=5, opacity=0.45, color=MAIN).encode(x=x, x2=alt.X2("high:Q"))
    point = base.mark_point(filled=True, size=70, color=MAIN).encode(x=alt.X("rho:Q"))
    zero = alt.Chart(pa.table({"zero": [0.0]})).mark_rule(color=GREY, strokeDash=[3, 3]).encode(x="zero:Q")
    return alt.LayerChart(
        layer=[zero, interval, point], title=heading(title, finding, share=share), height=_ROW * len(order)
    )


def counted(
    rows: pa.Table, *, name: str, value: str, value_title: str, title: str, finding: str, share: float = 1
) -> alt.Chart:
    """Draw a count for each of a few named groups, in the order of the rows."""
    chart: alt.Chart = (
        alt.Chart(rows, title=heading(title, finding, share=share), height=_ROW * rows.num_rows)
        .mark_bar(color=MAIN)
        .encode(
            x=alt.X(f"{value}:Q", title=value_title, axis=alt.Axis(format="~s")),
            y=alt.Y(f"{name}:N", title=None, sort=rows[name].to_pylist()),
            tooltip=[
                alt.Tooltip(f"{name}:N", title="Group"),
                alt.Tooltip(f"{value}:Q", title=value_title, format=",.4~g"),
            ],
        )
    )
    return chart


def five(scores: Mapping[str, Any], *, title: str) -> alt.Chart:
    """Draw the five scores of one moment."""
    table = pa.table({"score": list(DIMENSIONS), "value": [float(scores[name]) for name in DIMENSIONS]})
    chart: alt.Chart = (
        alt.Chart(table, title=alt.TitleParams(title, anchor="start", fontSize=13, offset=6), height=95)
        .mark_bar()
        .encode(
            x=alt.X("value:Q", title=None, scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(tickCount=2)),
            y=alt.Y("score:N", title=None, sort=list(DIMENSIONS), axis=alt.Axis(labelOverlap=False)),
            color=alt.Color("score:N", legend=None, scale=alt.Scale(domain=list(DIMENSIONS), range=PARTS)),
            tooltip=["score:N", alt.Tooltip("value:Q", format=".3f")],
        )
    )
    return chart


def grouped(
    rows: Sequence[Mapping[str, Any]],
    names: Mapping[str, str],
    *,
    group: str,
    group_title: str,
    value_title: str,
    title: str,
    finding: str,
) -> alt.Chart:
    """Draw several figures, `names` by field, for each of a few groups, side by side."""
    flat = [
        {"group": str(row[group]), "figure": name, "value": row[field]}
        for row in rows
        for field, name in names.items()
        if row[field] is not None
    ]
    table = pa.Table.from_pylist(
        flat, pa.schema([("group", pa.string()), ("figure", pa.string()), ("value", pa.float64())])
    )
    order = list(names.values())
    chart: alt.Chart = (
        alt.Chart(table, title=heading(title, finding), height=170)
        .mark_bar()
        .encode(
            x=alt.X("group:N", title=group_title, axis=alt.Axis(labelAngle=0)),
            xOffset=alt.XOffset("figure:N", sort=order),
            y=alt.Y("value:Q", axis=level(value_title)),
            color=alt.Color("figure:N", title="", sort=order, scale=series(order), legend=alt.Legend(orient="bottom")),
            tooltip=["group:N", "figure:N", alt.Tooltip("value:Q", format=".3f")],
        )
    )
    return chart
