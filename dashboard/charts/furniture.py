"""What charts have in common: the heading, colours, and what becomes of a chart on a light or a dark page.

A chart's height is that of its plot: heading, axes and legend come on top of it, so that no plot gives way to a long
sentence. Units stand level above the y axis, where there is room for them.
"""

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import altair as alt

GREY = "#808b96"
MAIN = "#0f8a80"
DEEP = "#0f766e"  # of bars that white text stands on
OTHER = "#d97706"
BAD = "#d0405b"
PARTS = ["#0f8a80", "#d97706", "#7c6fd6", "#3b82c4", "#b8577f"]
"""For up to five series of one chart."""

LEFT = 64  # pixels for the y axis, so that panels line up
_LINE_CHARACTERS = 175  # of a sentence, over the whole page of 1,280 pixels
_LINES = 2  # of a sentence, at least, so that charts beside one another are level

Chart: TypeAlias = alt.Chart | alt.LayerChart


class Ink(NamedTuple):
    """Colours that depend on what is behind them; text is readable on it (contrast of 4.5 or more)."""

    text: str
    muted: str
    line: str
    neutral: str  # middle of a scale with two ends


LIGHT = Ink("#16202a", "#5b6671", "#e1e6eb", "#f1f3f5")
DARK = Ink("#e6ebf0", "#a3aeb9", "#2b3540", "#2f3943")


def heading(title: str, finding: str, *, share: float = 1) -> alt.TitleParams:
    """Say what is drawn, and what it shows, on a `share` of the page's width."""
    said = textwrap.wrap(finding, round(_LINE_CHARACTERS * share)) or [""]
    said += [""] * (_LINES - len(said)) if share < 1 else []
    return alt.TitleParams(
        title, subtitle=said, anchor="start", offset=10, subtitleFontSize=13, subtitlePadding=5, subtitleLineHeight=17
    )


def level(title: str, **options: Any) -> alt.Axis:
    """Make a y axis with its title level above it."""
    place: dict[str, Any] = {
        "titleAngle": 0,
        "titleAlign": "left",
        "titleBaseline": "bottom",
        "titleX": -LEFT,
        "titleY": -10,
    }
    return alt.Axis(title=title, minExtent=LEFT, maxExtent=LEFT, tickCount=5, **place, **options)


def series(names: Sequence[str]) -> alt.Scale:
    """Give each name its colour, in this order."""
    return alt.Scale(domain=list(names), range=[PARTS[place % len(PARTS)] for place in range(len(names))])


def two_ended(low: str, high: str, ends: float, *, dark: bool) -> alt.Scale:
    """Scale from one colour over the page's neutral one to another; 0 is in the middle."""
    middle = (DARK if dark else LIGHT).neutral
    return alt.Scale(range=[low, middle, high], domain=[-ends, 0, ends], clamp=True, interpolate="lab")


def themed(chart: Chart, *, dark: bool) -> Chart:
    """Draw it for a light or a dark page, as wide as its place."""
    ink = DARK if dark else LIGHT
    sizes: dict[str, Any] = {"labelFontSize": 12, "titleFontSize": 13}
    lines: dict[str, Any] = {"gridColor": ink.line, "domainColor": ink.line}
    drawn: Chart = chart.properties(
        autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
        padding={"left": 3, "right": 8, "top": 4, "bottom": 8},
    ).configure(
        title=alt.TitleConfig(color=ink.text, subtitleColor=ink.muted),
        axis=alt.AxisConfig(
            labelColor=ink.muted, titleColor=ink.text, labelPadding=6, titlePadding=8, **lines, **sizes
        ),
        legend=alt.LegendConfig(
            labelColor=ink.text, titleColor=ink.text, labelPadding=4, padding=0, offset=10, **sizes
        ),
    )
    return drawn
