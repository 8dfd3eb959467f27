"""Figures of a run over its score windows, side by side. Which figures is the pages' choice."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import streamlit as st

from dashboard import charts, findings, queries, states
from dashboard.connection import Mirror
from dashboard.queries import Run


class Course(NamedTuple):
    """One figure of each score window."""

    field: str  # column of queries.windows
    name: str  # as a sentence begins with it
    heading: str
    unit: str  # title of the axis
    domain: tuple[float, float] | None = None


def draw(mirror: Mirror, run: Run, courses: Sequence[Course]) -> bool:
    """Draw a chart of each, or say that the run has no score window yet; tell whether it has."""
    windows = queries.windows(mirror, run.run_id)
    if not windows.num_rows:
        states.no_windows(run.is_live(datetime.now(UTC)))
        return False
    rows = windows.to_pylist()
    token = charts.Axis("token", "Tokens observed", (0, max(row["token"] for row in rows)))
    for place, course in zip(st.columns(len(courses)), courses, strict=True):
        finding = findings.course(rows, course.field, course.name)
        with place:
            st.altair_chart(
                charts.line(
                    windows,
                    x=token,
                    y=charts.Axis(course.field, course.unit, course.domain, ".2f"),
                    by="phase",
                    title=course.heading,
                    finding=finding,
                ),
                key=f"course {course.field}",
                alt=f"{course.heading}. {finding}",
            )
    return True
