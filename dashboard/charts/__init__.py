"""Frames in, Altair charts out. What the charts say in words is words.py and findings.py."""

from dashboard.charts.bars import DIMENSIONS, counted, five, grouped, validity
from dashboard.charts.expert_map import CLICK, Cell, Colour, expert_map, layer_margins
from dashboard.charts.furniture import themed
from dashboard.charts.series import Axis, columns, envelope, line, long_form, strip
from dashboard.charts.what_if import FLOOR, miss_ratio_curves

__all__ = [
    "CLICK",
    "DIMENSIONS",
    "FLOOR",
    "Axis",
    "Cell",
    "Colour",
    "columns",
    "counted",
    "envelope",
    "expert_map",
    "five",
    "grouped",
    "layer_margins",
    "line",
    "long_form",
    "miss_ratio_curves",
    "strip",
    "themed",
    "validity",
]
