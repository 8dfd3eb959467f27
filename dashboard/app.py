"""The router: which pages there are and at which address. What they show is in views/."""

from pathlib import Path

import streamlit as st

from dashboard.views import expert_map

_ICON = Path(__file__).with_name("icon.svg")  # a named icon would be fetched from the internet


def main() -> None:
    """Show the page that the address names."""
    st.set_page_config(page_title="Expert map", page_icon=_ICON, layout="wide")
    st.navigation(
        [
            st.Page(
                expert_map.render,
                title="Expert map",
                url_path="experts",
                help="Trust and load of each expert, layer by layer. Click a cell for the expert's figures.",
            )
        ]
    ).run()


if __name__ == "__main__":
    main()
