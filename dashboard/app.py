"""The router: which pages there are and at which address. What they show is in views/, one file a page."""

from pathlib import Path

import streamlit as st

_ICON = Path(__file__).with_name("icon.svg")  # a named icon would be fetched from the internet

# Title and explanation by the name of the view's file, which is also the page's address.
PAGES = {
    "overview": ("Overview", "All runs of the record, how they stand, and what differs between two of them."),
    "expert_map": (
        "Expert map",
        "Trust, load and residency of each expert, layer by layer. Click a cell for the expert's figures.",
    ),
    "expert": ("Expert", "One expert over the run: trust, load, memory, salient moments, and who is picked with it."),
    "salience": ("Salience", "The moments of the texts that stood out, why, and what followed them."),
    "residency": ("Residency", "What was loaded and evicted, why, and whether that was regretted."),
    "validation": ("Validation", "How far the figures can be trusted: what they foretold of removing experts."),
    "quality": ("Data quality", "What was not recorded, and how the job kept up."),
    "sql": ("SQL", "Named questions and your own, on the same record, read-only."),
}


def main() -> None:
    """Show the page that the address names."""
    st.set_page_config(page_icon=_ICON, layout="wide")
    pages = [
        st.Page(f"views/{name}.py", title=title, help=about, default=name == "overview")
        for name, (title, about) in PAGES.items()
    ]
    st.navigation(pages, position="top").run()


if __name__ == "__main__":
    main()
