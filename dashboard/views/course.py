"""Figures of a run over its score windows, side by side. Which figures is the pages' choice."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import streamlit as st

from dashboard import charts, figure, findings, queries, states
from dashboard.connection import Mirror
from dashboard.queries import Run


class Course(NamedTuple):
    """One figure of each score window."""

    field: str  # column of queries.windows
    name: str  # in a sentence
    heading: str
    unit: str  # title of the axis
    domain: tuple[float, float] | None = None
    form: str = ".2f"
    from_zero: bool = True


def draw(mirror: Mirror, run: Run, courses: Sequence[Course]) -> bool:
    """Draw a chart of each, or say that the run has no score window yet; tell whether it has."""
    windows = queries.windows(mirror, run.run_id)
    if not windows.num_rows:
        states.no_windows(run.is_live(datetime.now(UTC)))
        return False
    rows = windows.to_pylist()
    token = charts.Axis("token", "Tokens observed", (0, max(row["token"] for row in rows)))
    for place, course in zip(st.columns(len(courses)), courses, strict=True):
        finding = findings.course(rows, course.field, course.name, course.form)
        y = charts.Axis(course.field, course.unit, course.domain, course.form, course.from_zero)
        with place:
            figure.draw(
                charts.line(
                    windows, x=token, y=y, by="phase", title=course.heading, finding=finding, share=1 / len(courses)
                ),
                key=f"course {course.field}",
                title=course.heading,
                finding=finding,
            )
    return True
