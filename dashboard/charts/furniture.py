"""What charts have in common: the heading, and colours that are readable on light and on dark."""

import altair as alt

GREY = "#808b96"
MAIN = "#0f8a80"
OTHER = "#d97706"
BAD = "#d0405b"
PARTS = ["#0f8a80", "#d97706", "#7c6fd6", "#3b82c4", "#b8577f"]
"""For up to five series of one chart."""


def heading(title: str, finding: str, offset: int = 8) -> alt.TitleParams:
    """Say what is drawn, and what it shows; `offset` is the room below it, in pixels."""
    return alt.TitleParams(
        title,
        subtitle=finding,
        anchor="start",
        offset=offset,
        subtitleFontSize=13,
        subtitlePadding=5,
        subtitleColor=GREY,
    )
