"""A line of labelled facts. Values are drawn as plain text: names in a record are never read as markup."""

from collections.abc import Iterable

import streamlit as st

from dashboard.words import Fact


def line(facts: Iterable[Fact]) -> None:
    """Draw facts side by side, wrapping where the page is narrow."""
    with st.container(horizontal=True, gap="small"):
        for fact in facts:
            with st.container(width="content", gap=None):
                st.caption(fact.label, help=fact.meaning)
                st.text(fact.value)
