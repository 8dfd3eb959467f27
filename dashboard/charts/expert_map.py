"""The map of layers x experts of one component, and its margins. Reading clicks is up to the views."""

from typing import Literal, NamedTuple

import altair as alt
import pyarrow as pa

from dashboard.charts.furniture import DEEP, GREY, heading, two_ended

Colour = Literal["trust", "convergence", "load", "residency", "difference"]
CLICK = "cell"
"""Name of the chart's selection; a click on a cell selects its `layer` and `expert`."""

_SHOWN = {"trust", "load", "load_log2"}  # in every tooltip
_CROSS = "\N{MULTIPLICATION SIGN}"
_SVG_CELLS = 2000  # above, one element of the page per cell makes it slow; up to here each cell can be read aloud
_MAP_SHARE = 0.8  # of the page's width; the margins have the rest
_MARK = "#ff2d6b"  # in neither colour scale, clear of both backgrounds


class Cell(NamedTuple):
    """A place on the map."""

    layer: int
    expert: int


class _Scale(NamedTuple):
    field: str
    unit: str
    scale: alt.Scale


def _scale(colour: Colour, dark: bool) -> _Scale:
    from_0_to_1 = alt.Scale(scheme="viridis", domain=[0, 1], clamp=True)
    if colour == "load":
        unit = "log2 of load / fair share (0 = fair, 1 = double; ends at ±3)"
        return _Scale("load_log2", unit, two_ended("#8b6fd0", "#e07b10", 3, dark=dark))
    if colour == "difference":
        unit = "trust here minus trust in the other run (ends at ±0.5)"
        return _Scale("change", unit, two_ended("#d0405b", "#2f80d0", 0.5, dark=dark))
    if colour == "residency":
        return _Scale("residency", "share of the passes that wanted it and found it in memory, 0 to 1", from_0_to_1)
    return _Scale(colour, f"{colour}, 0 to 1", from_0_to_1)


def expert_map(
    cells: pa.Table, *, colour: Colour, title: str, finding: str, marked: Cell | None, dark: bool = False
) -> alt.LayerChart:
    """Draw layers x experts of one component.

    Colour domains are fixed, so that two maps may be compared; what is not known is grey instead, and unused experts
    are crossed out.
    """
    by = _scale(colour, dark)
    layers = sorted(set(cells["layer"].to_pylist()))
    experts = sorted(set(cells["expert"].to_pylist()))
    height = _row_height(len(layers))

    base = alt.Chart(cells).encode(
        x=alt.X(
            "expert:O",
            title="Expert",
            scale=alt.Scale(domain=experts),
            axis=alt.Axis(labelAngle=0, values=_ticks(experts), ticks=False, domain=False),
        ),
        y=alt.Y(
            "layer:O",
            title="Layer",
            scale=alt.Scale(domain=layers),
            axis=alt.Axis(values=_ticks(layers), ticks=False, domain=False),
        ),
        tooltip=[
            alt.Tooltip("layer:O", title="Layer"),
            alt.Tooltip("expert:O", title="Expert"),
            alt.Tooltip("trust:Q", title="Trust", format=".3f"),
            alt.Tooltip("trust_low:Q", title="90% from", format=".3f"),
            alt.Tooltip("trust_high:Q", title="90% to", format=".3f"),
            alt.Tooltip("load:Q", title="Load", format=".2%"),
            alt.Tooltip("uses:Q", title="Uses", format=",d"),
            *(
                [alt.Tooltip(f"{by.field}:Q", title=colour.capitalize(), format=".3f")]
                if by.field not in _SHOWN
                else []
            ),
        ],
    )
    colour_of_cell = alt.Color(
        f"{by.field}:Q",
        scale=by.scale,
        legend=alt.Legend(
            title=by.unit,
            titleOrient="left",
            titleLimit=480,
            orient="bottom",
            direction="horizontal",
            gradientLength=240,
            gradientThickness=10,
        ),
    )
    click = alt.selection_point(name=CLICK, fields=["layer", "expert"], on="click", toggle=False, clear=False)
    known = f"!datum.dead && isValid(datum.{by.field})"
    alive = base.mark_rect(cursor="pointer").encode(color=colour_of_cell).transform_filter(known)
    blank = base.mark_rect(fill=GREY, fillOpacity=0.25, cursor="pointer").transform_filter(f"!({known})")
    cross = base.mark_text(text=_CROSS, color=GREY, fontSize=min(16, height), aria=False).transform_filter("datum.dead")
    layered: list[alt.Chart] = [alive.add_params(click), blank, cross]
    if marked is not None:
        outline = base.mark_rect(fillOpacity=0, stroke=_MARK, strokeWidth=3, cornerRadius=2, cursor="pointer")
        layered.append(outline.transform_filter(f"datum.layer === {marked.layer} && datum.expert === {marked.expert}"))
    return alt.LayerChart(
        layer=layered,
        title=heading(title, finding, share=_MAP_SHARE),
        height=height * len(layers),
        usermeta={"embedOptions": {"renderer": "canvas" if cells.num_rows > _SVG_CELLS else "svg"}},
    )


def layer_margins(layers: pa.Table) -> alt.LayerChart:
    """Draw how evenly each layer of one component uses its experts, and how many it never uses, beside the map."""
    names = layers["layer"].to_pylist()
    rows = alt.Scale(domain=names, paddingInner=0.15, paddingOuter=0.075)  # as high as the map's
    base = alt.Chart(layers).encode(
        y=alt.Y("layer:O", title=None, scale=rows, axis=alt.Axis(values=_ticks(names), ticks=False))
    )
    evenness = base.mark_bar(color=DEEP).encode(
        x=alt.X(
            "entropy_share:Q",
            title="Entropy of load, 0 to 1",
            scale=alt.Scale(domain=[0, 1]),
            axis=alt.Axis(tickCount=2),
        ),
        tooltip=[
            alt.Tooltip("layer:O", title="Layer"),
            alt.Tooltip("entropy_share:Q", title="Entropy / greatest", format=".3f"),
            alt.Tooltip("dead:Q", title="Never used"),
        ],
    )
    height = _row_height(len(names))
    dead = (
        base.mark_text(align="left", dx=4, color="#ffffff", fontSize=min(12, height))
        .transform_filter("datum.dead > 0")
        .transform_calculate(label="datum.dead + ' dead'")
        .encode(x=alt.datum(0), text=alt.Text("label:N"))
    )
    return alt.LayerChart(
        layer=[evenness, dead],
        title=heading("Evenness", "of each layer's use", share=1 - _MAP_SHARE),
        height=height * len(names),
    )


def _row_height(layers: int) -> int:
    return min(34, max(9, 420 // max(layers, 1)))


def _ticks(values: list[int]) -> list[int]:
    """Thin axis labels to at most 32, at round steps.

    >>> _ticks(list(range(128)))[:4]
    [0, 4, 8, 12]
    """
    step = next(step for step in (1, 2, 4, 8, 16, 32, 64, 128, 256) if len(values) <= 32 * step)
    return values[::step]
