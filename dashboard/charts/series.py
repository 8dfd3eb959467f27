"""Figures over the course of a run. All panels of one page share their x axis by its domain and its left margin."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import altair as alt
import pyarrow as pa
import pyarrow.compute as pc

from dashboard.charts.furniture import LEFT, MAIN, OTHER, heading, level, series

_BELOW = alt.Legend(orient="bottom", titleAnchor="start")  # beside, it would take from the width of the panel


class Axis(NamedTuple):
    """A field, what it is called with its unit, and the ends of its axis if they are fixed."""

    field: str
    title: str
    domain: tuple[float, float] | None = None
    form: str = "~s"
    from_zero: bool = True  # of an axis without fixed ends

    def x(self) -> alt.X:
        """Encode it as the shared axis."""
        domain = alt.Undefined if self.domain is None else list(self.domain)
        return alt.X(
            f"{self.field}:Q",
            title=self.title,
            scale=alt.Scale(domain=domain, nice=False, zero=False),
            axis=alt.Axis(format=self.form, grid=False),
        )

    def y(self) -> alt.Y:
        """Encode it as the height."""
        scale = alt.Scale(zero=self.from_zero) if self.domain is None else alt.Scale(domain=list(self.domain))
        return alt.Y(f"{self.field}:Q", scale=scale, axis=level(self.title, format=self.form))

    def tooltip(self, form: str | None = None) -> alt.Tooltip:
        """Name its value under the pointer."""
        return alt.Tooltip(f"{self.field}:Q", title=self.title, format=form or self.form)


def line(
    table: pa.Table,
    *,
    x: Axis,
    y: Axis,
    title: str,
    finding: str,
    band: tuple[str, str] | None = None,
    by: str | None = None,
    share: float = 1,
    height: int = 150,
) -> alt.LayerChart:
    """Draw a line, in a band from one field to another; `by` names a field that makes several lines."""
    base = alt.Chart(table).encode(x=x.x())
    layers: list[alt.Chart] = []
    if band is not None:
        low, high = band
        layers.append(base.mark_area(opacity=0.25, color=MAIN).encode(y=alt.Y(f"{low}:Q"), y2=alt.Y2(f"{high}:Q")))
    tooltip = [x.tooltip(",d" if x.form == "~s" else None), y.tooltip(".4~f" if y.form == "~s" else None)]
    colour: Any = alt.value(MAIN)
    if by is not None:
        names = pc.unique(table[by].filter(pc.is_valid(table[y.field]))).to_pylist()
        colour = alt.Color(f"{by}:N", title=None, scale=series(names), legend=_BELOW)
        tooltip.append(alt.Tooltip(f"{by}:N", title="Series"))
    point = {"size": 24, "filled": True} if table.num_rows < 60 else False
    curve = base.mark_line(point=point, strokeWidth=1.8)
    layers.append(curve.encode(y=y.y(), color=colour, tooltip=tooltip))
    return alt.LayerChart(layer=layers, title=heading(title, finding, share=share), height=height)


def columns(
    table: pa.Table, *, x: Axis, y: Axis, title: str, finding: str, by: str | None = None, height: int = 150
) -> alt.Chart:
    """Draw thin columns where there is something, stacked by the field `by`."""
    colour = (
        alt.value(MAIN)
        if by is None
        else alt.Color(f"{by}:N", title="", scale=alt.Scale(range=[OTHER, MAIN]), legend=_BELOW)
    )
    chart: alt.Chart = (
        alt.Chart(table, title=heading(title, finding), height=height)
        .mark_bar(size=max(1.5, min(12, 600 / max(table.num_rows, 1))))
        .encode(x=x.x(), y=y.y(), color=colour, tooltip=[x.tooltip(",d"), y.tooltip()])
    )
    return chart


def strip(table: pa.Table, *, since: Axis, until: str, title: str, finding: str) -> alt.Chart:
    """Draw the stretches that something lasted for as one row of bars."""
    chart: alt.Chart = (
        alt.Chart(table, title=heading(title, finding), height=30)
        .mark_bar(color=MAIN, clip=True)
        .encode(
            x=since.x(),
            x2=alt.X2(f"{until}:Q"),
            y=alt.Y("row:N", title=None, axis=alt.Axis(minExtent=LEFT, maxExtent=LEFT)),
            tooltip=[since.tooltip(",d"), alt.Tooltip(f"{until}:Q", title="until", format=",d"), "reason:N"],
        )
        .transform_calculate(row="'in memory'")
    )
    return chart


def envelope(
    table: pa.Table, *, x: Axis, least: str, greatest: str, last: Axis, title: str, finding: str
) -> alt.LayerChart:
    """Draw extremes as a band and the last value of each stretch as a line: a mean would hide the peaks."""
    base = alt.Chart(table).encode(x=x.x())
    tooltip = [x.tooltip(",d"), alt.Tooltip(f"{least}:Q", format=".3f"), alt.Tooltip(f"{greatest}:Q", format=".3f")]
    band = base.mark_area(opacity=0.3, color=MAIN).encode(
        y=alt.Y(f"{least}:Q"), y2=alt.Y2(f"{greatest}:Q"), tooltip=tooltip
    )
    curve = base.mark_line(strokeWidth=1.2, color=MAIN).encode(y=last.y(), tooltip=tooltip)
    return alt.LayerChart(layer=[band, curve], title=heading(title, finding), height=170)


def long_form(table: pa.Table, x: str, names: Sequence[str]) -> pa.Table:
    """Put columns below one another, as `series` and `value`, for charts of several lines."""
    parts = [
        pa.table({x: table[x], "series": pa.array([name] * table.num_rows, pa.string()), "value": table[name]})
        for name in names
    ]
    return pa.concat_tables(parts, promote_options="permissive")
