"""Miss ratio over budget, a line per policy. Which policies are worth a line is up to the views."""

from collections.abc import Sequence

import altair as alt
import pyarrow as pa

from dashboard.charts.furniture import DARK, GREY, LIGHT, PARTS, heading, level

FLOOR = "belady"
FLOOR_NAME = "belady (floor)"


def miss_ratio_curves(
    rows: pa.Table, policies: Sequence[str], *, title: str, finding: str, dark: bool = False
) -> alt.LayerChart:
    """Draw the miss ratio of each policy over the budget, in its interval; the run's own setting is a point.

    The floor, which no policy can be below because it knows the future, is dashed.
    """
    shown = [row for row in rows.to_pylist() if row["policy"] in (*policies, FLOOR)]
    has_floor = any(row["policy"] == FLOOR for row in shown)
    names = [*policies, *([FLOOR_NAME] if has_floor else [])]
    table = pa.Table.from_pylist([{**row, "line": _name(row["policy"])} for row in shown], _schema(rows))
    colours = [PARTS[place % len(PARTS)] for place in range(len(policies))]
    scale = alt.Scale(domain=names, range=[*colours, *([GREY] if has_floor else [])])
    base = alt.Chart(table).encode(
        x=alt.X(
            "budget_experts:Q",
            title="Experts in memory at most",
            scale=alt.Scale(nice=False),
            axis=alt.Axis(grid=False),
        ),
        color=alt.Color(
            "line:N",
            title=None,
            scale=scale,
            legend=alt.Legend(orient="bottom", symbolType="stroke", symbolOpacity=1, symbolStrokeWidth=2.5),
        ),
        tooltip=[
            alt.Tooltip("line:N", title="Policy"),
            alt.Tooltip("budget_experts:Q", title="Experts in memory", format=",d"),
            alt.Tooltip("miss_ratio:Q", title="Miss ratio", format=".3f"),
            alt.Tooltip("miss_ratio_low:Q", title="90% from", format=".3f"),
            alt.Tooltip("miss_ratio_high:Q", title="90% to", format=".3f"),
            alt.Tooltip("mib:Q", title="Read, MiB", format=",.1f"),
            alt.Tooltip("read_s:Q", title="Reading, s (estimate)", format=",.2f"),
        ],
    )
    y = alt.Y(
        "miss_ratio:Q",
        scale=alt.Scale(domain=[0, 1]),
        axis=level("Miss ratio: share of accesses that found the expert not in memory", format=".1f"),
    )
    band = base.mark_area(opacity=0.15).encode(y=alt.Y("miss_ratio_low:Q"), y2=alt.Y2("miss_ratio_high:Q"))
    dash = alt.condition(f"datum.policy === '{FLOOR}'", alt.value([5, 4]), alt.value([1, 0]))
    curve = base.mark_line(strokeWidth=1.8).encode(y=y, strokeDash=dash)
    own = base.transform_filter("datum.is_own")
    point = own.mark_point(size=110, filled=True, opacity=1).encode(y=y)
    label = own.mark_text(align="left", dx=9, dy=-9, fontSize=13, fontWeight=600).encode(
        y=y, text=alt.value("this run"), color=alt.value((DARK if dark else LIGHT).text)
    )
    return alt.LayerChart(layer=[band, curve, point, label], title=heading(title, finding), height=260)


def _name(policy: str) -> str:
    return FLOOR_NAME if policy == FLOOR else policy


def _schema(rows: pa.Table) -> pa.Schema:
    return rows.schema.append(pa.field("line", pa.string()))
