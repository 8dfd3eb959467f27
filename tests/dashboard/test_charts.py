import pyarrow as pa
import pytest

from dashboard import charts, words


def cells(**changes: dict[int, object]) -> pa.Table:
    """One layer of four experts; `changes` maps a column to new values by expert."""
    rows = [
        dict(layer=0, expert=expert, uses=10, dead=False, trust=0.2 * expert, trust_low=0.1, trust_high=0.9)
        | dict(load=0.25, load_log2=0.0)
        for expert in range(4)
    ]
    for column, values in changes.items():
        for expert, value in values.items():
            rows[expert][column] = value
    return pa.Table.from_pylist(rows)


def spec(colour: charts.Colour, marked: charts.Cell | None = None) -> dict:
    return charts.expert_map(cells(), colour=colour, title="T", finding="F.", marked=marked).to_dict()


@pytest.mark.parametrize(("colour", "field", "domain"), [("trust", "trust", [0, 1]), ("load", "load_log2", [-3, 3])])
def test_the_colour_domain_is_fixed(colour: charts.Colour, field: str, domain: list[int]):
    encoding = spec(colour)["layer"][0]["encoding"]["color"]
    assert (encoding["field"], encoding["scale"]["domain"]) == (field, domain)
    assert encoding["legend"]["title"]
    assert (encoding["scale"].get("domainMid") == 0) == (colour == "load")


def test_unused_experts_are_drawn_apart_and_without_colour():
    alive, dead, cross = spec("trust")["layer"]
    assert alive["transform"] == [{"filter": "!datum.dead"}]
    for layer in (dead, cross):
        assert layer["transform"] == [{"filter": "datum.dead"}]
        assert "color" not in layer["encoding"]


def test_a_click_yields_layer_and_expert():
    (selection,) = spec("trust")["params"]
    assert selection["name"] == charts.CLICK
    assert selection["select"]["fields"] == ["layer", "expert"]


def test_the_chosen_cell_is_outlined():
    outline = spec("trust", charts.Cell(0, 2))["layer"][-1]
    assert outline["transform"] == [{"filter": "datum.layer === 0 && datum.expert === 2"}]
    assert outline["mark"]["fillOpacity"] == 0


def test_the_title_says_what_the_chart_shows():
    assert spec("load")["title"] | {"text": "T", "subtitle": "F."} == spec("load")["title"]


def test_the_findings_are_computed_from_the_cells():
    rows = cells(dead={3: True}, uses={3: 0}, load_log2={1: 1.0, 2: 2.0, 3: None}).to_pylist()
    assert words.trust_finding(rows) == (
        "Trust runs from 0.00 (layer 0, expert 0) to 0.40 (layer 0, expert 2, 90% interval 0.10 to 0.90). "
        "1 of 4 experts was never used (crossed out)."
    )
    assert words.load_finding(rows) == (
        "The busiest expert (layer 0, expert 2) takes 4.0 times its fair share; 2 of 4 take at least twice theirs. "
        "1 of 4 experts was never used (crossed out)."
    )


@pytest.mark.parametrize("finding", [words.trust_finding, words.load_finding])
def test_a_map_of_unused_experts_says_so(finding):
    rows = cells(dead=dict.fromkeys(range(4), True), load_log2=dict.fromkeys(range(4))).to_pylist()
    assert finding(rows) == "4 of 4 experts were never used (crossed out)."
