import pyarrow as pa
import pytest

from dashboard import charts, findings
from tests.dashboard.contrast import contrast

DARK_PAGE = "#11161c"
LAYERS = pa.table({"layer": [0, 1], "entropy_share": [0.5, 1.0], "dead": [0, 2], "experts": [4, 4]})


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


@pytest.mark.parametrize(
    ("colour", "field", "domain"),
    [
        ("trust", "trust", [0, 1]),
        ("convergence", "convergence", [0, 1]),
        ("load", "load_log2", [-3, 0, 3]),
        ("residency", "residency", [0, 1]),
        ("difference", "change", [-0.5, 0, 0.5]),
    ],
)
def test_the_colour_domain_is_fixed(colour: charts.Colour, field: str, domain: list[int]):
    encoding = spec(colour)["layer"][0]["encoding"]["color"]
    assert (encoding["field"], encoding["scale"]["domain"]) == (field, domain)
    assert encoding["legend"]["title"]


def test_what_is_not_known_has_no_colour_and_unused_experts_are_crossed_out():
    alive, blank, cross = spec("trust")["layer"]
    assert alive["transform"] == [{"filter": "!datum.dead && isValid(datum.trust)"}]
    assert blank["transform"] == [{"filter": "!(!datum.dead && isValid(datum.trust))"}]
    assert cross["transform"] == [{"filter": "datum.dead"}]
    for layer in (blank, cross):
        assert "color" not in layer["encoding"]


@pytest.mark.parametrize("colour", ["load", "difference"])
def test_the_middle_of_a_scale_with_two_ends_is_near_the_page(colour: charts.Colour):
    def middle(dark: bool) -> str:
        drawn = charts.expert_map(cells(), colour=colour, title="T", finding="F.", marked=None, dark=dark).to_dict()
        return drawn["layer"][0]["encoding"]["color"]["scale"]["range"][1]

    assert contrast(middle(False), "#ffffff") < 2
    assert contrast(middle(True), DARK_PAGE) < 2


@pytest.mark.parametrize(("dark", "page"), [(False, "#ffffff"), (True, DARK_PAGE)])
def test_text_is_readable_on_its_page(dark: bool, page: str):
    config = charts.themed(charts.layer_margins(LAYERS), dark=dark).to_dict()["config"]
    colours = [config["title"][name] for name in ("color", "subtitleColor")]
    colours += [config[part][name] for part in ("axis", "legend") for name in ("labelColor", "titleColor")]
    assert min(contrast(colour, page) for colour in colours) >= 4.5


def test_a_click_yields_layer_and_expert():
    (selection,) = spec("trust")["params"]
    assert selection["name"] == charts.CLICK
    assert selection["select"]["fields"] == ["layer", "expert"]


def test_the_chosen_cell_is_outlined():
    outline = spec("trust", charts.Cell(0, 2))["layer"][-1]
    assert outline["transform"] == [{"filter": "datum.layer === 0 && datum.expert === 2"}]
    assert outline["mark"]["fillOpacity"] == 0


def test_a_click_is_heard_on_dead_cells_too():
    alive, dead, _ = spec("trust")["layer"]
    assert alive["mark"]["cursor"] == dead["mark"]["cursor"] == "pointer"


def test_margins_are_as_high_as_the_map_beside_them():
    two = pa.concat_tables([cells(), cells().set_column(0, "layer", pa.array([1] * 4))])
    drawn = charts.expert_map(two, colour="trust", title="T", finding="F.", marked=None).to_dict()
    assert charts.layer_margins(LAYERS).to_dict()["height"] == drawn["height"]


TOKEN = charts.Axis("token", "Tokens", (0, 10))


def test_panels_share_their_axis_and_their_left_margin():
    rows = pa.table({"token": [5, 10], "a": [0.1, 0.2], "low": [0.0, 0.1], "high": [0.2, 0.3]})
    one = charts.line(rows, x=TOKEN, y=charts.Axis("a", "A"), band=("low", "high"), title="T", finding="F.").to_dict()
    other = charts.line(rows, x=TOKEN, y=charts.Axis("low", "B", (0, 1)), title="T", finding="F.").to_dict()
    for drawn in (one, other):
        encoding = drawn["layer"][-1]["encoding"]
        assert encoding["x"]["scale"]["domain"] == [0, 10]
        assert (encoding["y"]["axis"]["minExtent"], encoding["y"]["axis"]["maxExtent"]) == (64, 64)
    assert [layer["mark"]["type"] for layer in one["layer"]] == ["area", "line"]
    assert one["layer"][0]["encoding"]["y2"]["field"] == "high"


def test_columns_below_one_another_keep_their_values():
    rows = pa.table({"token": [5, 10], "a": [0.1, 0.2], "b": [1, 2]})
    assert charts.long_form(rows, "token", ["a", "b"]).to_pylist() == [
        {"token": 5, "series": "a", "value": 0.1},
        {"token": 10, "series": "a", "value": 0.2},
        {"token": 5, "series": "b", "value": 1.0},
        {"token": 10, "series": "b", "value": 2.0},
    ]


def test_validity_is_drawn_with_its_interval_from_minus_one_to_one():
    rows = pa.table({"statistic": ["a"], "rho": [0.5], "low": [0.4], "high": [0.6], "n": [9], "texts": [3]})
    _, interval, point = charts.validity(rows, title="T", finding="F.").to_dict()["layer"]
    assert (interval["encoding"]["x"]["field"], interval["encoding"]["x2"]["field"]) == ("low", "high")
    assert interval["encoding"]["x"]["scale"]["domain"] == [-1, 1]
    assert point["encoding"]["x"]["field"] == "rho"


def curves(policies: list[str], dark: bool = False) -> dict:
    rows = [
        dict(policy=policy, budget_experts=budget, is_own=(policy, budget) == ("lru", 8), miss_ratio=ratio)
        | dict(miss_ratio_low=ratio - 0.1, miss_ratio_high=ratio + 0.1, mib=1.0, read_s=1.0)
        for policy, start in (("lru", 0.9), ("lfu", 0.8), ("belady", 0.5))
        for budget, ratio in ((4, start), (8, start / 2))
    ]
    table = pa.Table.from_pylist(rows)
    return charts.miss_ratio_curves(table, policies, title="T", finding="F.", dark=dark).to_dict()


def test_curves_are_of_the_chosen_policies_over_the_floor():
    drawn = curves(["lfu"])
    (rows,) = drawn["datasets"].values()
    assert {row["line"] for row in rows} == {"lfu", "belady (floor)"}
    band, curve, own, _ = drawn["layer"]
    assert (band["encoding"]["y"]["field"], band["encoding"]["y2"]["field"]) == ("miss_ratio_low", "miss_ratio_high")
    assert curve["encoding"]["y"]["field"] == "miss_ratio"
    assert curve["encoding"]["y"]["scale"]["domain"] == [0, 1]
    assert curve["encoding"]["color"]["scale"]["domain"] == ["lfu", "belady (floor)"]
    assert own["transform"] == [{"filter": "datum.is_own"}]
    assert not any(row["is_own"] for row in rows)
    (with_own,) = curves(["lru"])["datasets"].values()
    assert [row["budget_experts"] for row in with_own if row["is_own"]] == [8]


def test_a_stream_is_drawn_by_its_extremes():
    rows = pa.table({"part": [1, 2], "least": [0.1, 0.2], "greatest": [0.3, 0.9], "last": [0.2, 0.5]})
    drawn = charts.envelope(
        rows,
        x=charts.Axis("part", "Part"),
        least="least",
        greatest="greatest",
        last=charts.Axis("last", "Salience"),
        title="T",
        finding="F.",
    ).to_dict()
    band, curve = drawn["layer"]
    assert (band["encoding"]["y"]["field"], band["encoding"]["y2"]["field"]) == ("least", "greatest")
    assert curve["encoding"]["y"]["field"] == "last"


def test_the_title_says_what_the_chart_shows():
    title = spec("load")["title"]
    assert (title["text"], " ".join(title["subtitle"]).strip()) == ("T", "F.")


def test_a_long_sentence_is_wrapped_to_the_width_of_its_place():
    finding = "word " * 60
    rows = pa.table({"token": [5, 10], "a": [0.1, 0.2]})
    lines = [
        charts.line(rows, x=TOKEN, y=charts.Axis("a", "A"), title="T", finding=finding, share=share)
        .to_dict()["title"]["subtitle"]
        for share in (1, 0.5)
    ]  # fmt: skip
    assert [" ".join(said) for said in lines] == [finding.strip()] * 2
    assert len(lines[1]) == 2 * len(lines[0]) == 4


def test_the_findings_are_computed_from_the_cells():
    rows = cells(dead={3: True}, uses={3: 0}, load_log2={1: 1.0, 2: 2.0, 3: None}).to_pylist()
    assert findings.trust(rows) == (
        "Trust runs from 0.00 (layer 0, expert 0) to 0.40 (layer 0, expert 2, 90% interval 0.10 to 0.90). "
        "1 of 4 experts was never used (crossed out)."
    )
    assert findings.load(rows) == (
        "The busiest expert (layer 0, expert 2) takes 4.0 times its fair share; 2 of 4 take at least twice theirs. "
        "1 of 4 experts was never used (crossed out)."
    )


@pytest.mark.parametrize("finding", [findings.trust, findings.load])
def test_a_map_of_unused_experts_says_so(finding):
    rows = cells(dead=dict.fromkeys(range(4), True), load_log2=dict.fromkeys(range(4))).to_pylist()
    assert finding(rows) == "4 of 4 experts were never used (crossed out)."
