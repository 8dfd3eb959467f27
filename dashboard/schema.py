"""What the views of a record mean, in the words of the record itself: the comments in the views' definitions."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from dashboard.contract import VIEWS

_COLUMN = re.compile(r"(?P<name>\w+),?\s*--\s*(?P<about>.*)$")


class Column(NamedTuple):
    """A column of a view."""

    name: str
    kind: str  # INTEGER, REAL or TEXT
    about: str  # '' if the record does not say


class Described(NamedTuple):
    """A view and its columns."""

    name: str
    about: str
    columns: list[Column]


def describe(definitions: Mapping[str, str]) -> list[Described]:
    """Describe the views that queries may name; `definitions` holds their SQL by name.

    >>> text = "CREATE VIEW v_gap AS\\n-- what was not recorded\\nSELECT\\n  reason, -- why\\n  count -- events"
    >>> gap = next(view for view in describe({"v_gap": text}) if view.name == "v_gap")
    >>> gap.about, [(column.name, column.about) for column in gap.columns if column.about]
    ('what was not recorded', [('count', 'events'), ('reason', 'why')])
    """
    views = []
    for name, view in VIEWS.items():
        about, columns = "", {}
        for line in definitions.get(name, "").splitlines():
            if line.startswith("-- "):
                about = f"{about} {line[3:]}".strip()
            elif found := _COLUMN.search(line):
                columns[found["name"]] = found["about"]
        views.append(
            Described(name, about, [Column(key, kind, columns.get(key, "")) for key, kind in view.columns.items()])
        )
    return views
