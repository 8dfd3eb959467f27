"""The pages in a browser: one way through each, two users at once, a run that goes on."""

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.dashboard.record import EVIL
from tests.e2e.conftest import LATER, PATIENCE_MS, Sql, a_user
from tests.e2e.pages import cell, chart, choose, fact, idle, picture, query, unreadable, wait_for_query

pytestmark = pytest.mark.e2e


def test_overview_compares_two_runs(address: str, page: Page):
    page.goto(f"{address}/?run=small")
    expect(fact(page, "Tokens")).to_have_text("123,456")
    expect(chart(page, "Hit rate of small")).to_be_visible()
    choose(page, "Compare with", "omni")
    expect(page.get_by_text("small against omni")).to_be_visible()
    wait_for_query(page, run="small", other="omni")


def test_a_click_on_the_map_leads_to_the_expert(address: str, page: Page, sql: Sql):
    page.goto(f"{address}/expert_map?run=small&context=code")
    idle(page)
    cell(page, 2, 12).click()
    wait_for_query(page, run="small", context="code", layer="2", expert="12")
    key = "run_id = 1 and component = 'model' and layer = 2 and expert = 12"
    (row,) = sql(f"select * from v_expert_trust where {key} and context = 'code'")
    expected = {
        "Trust": f"{row['trust']:.3f}",
        "90% interval": f"{row['trust_low']:.3f} to {row['trust_high']:.3f}",
        "Uses": f"{row['uses']:,d}",
        "Load": f"{row['load']:.2%}",
        "REAP": f"{row['reap']:.4f}",
        "Impact": f"{row['impact_mean']:.5f}",
    }
    for label, value in expected.items():
        expect(fact(page, label)).to_have_text(value)
    expect(page.get_by_test_id("stDataFrame").locator("canvas").first).to_be_visible()
    picture(page, "expert_map")

    idle(page)
    page.get_by_role("link", name="This expert over the run").click()
    expect(chart(page, "Trust of layer 2, expert 12")).to_be_visible()
    wanted = {"layer": "2", "expert": "12", "run": "small"}
    page.wait_for_url(lambda url: wanted.items() <= query(url).items())
    expect(page.get_by_text("Layer 3, expert 7 (next layer)", exact=False)).to_be_visible()
    picture(page, "expert")


def test_a_click_after_another_choice_is_still_a_choice(address: str, page: Page):
    page.goto(f"{address}/expert_map?run=omni")
    talker = chart(page, "Trust of each expert: talker")  # the thinker's may be drawn before it
    expect(talker).to_be_visible()
    idle(page)
    cell(talker, 1, 3).click()
    wait_for_query(page, run="omni", layer="1", expert="3")
    choose(page, "Expert", "5")
    wait_for_query(page, run="omni", layer="1", expert="5")
    idle(page)  # the map that was clicked gives way to a new one
    cell(talker, 1, 3).click()
    wait_for_query(page, run="omni", layer="1", expert="3")


def test_salience_shows_texts_as_they_are(address: str, page: Page):
    page.goto(f"{address}/salience?run=small")
    expect(page.get_by_text(EVIL, exact=True)).to_be_visible()  # any script in it would raise a dialog
    choose(page, "Driven by", "conflict")
    expect(page.get_by_text(EVIL, exact=True)).to_have_count(0)
    wait_for_query(page, run="small", driven_by="conflict")


def test_residency_shows_what_was_regretted(address: str, page: Page):
    page.goto(f"{address}/residency?run=small")
    expect(chart(page, "Regret")).to_contain_text("2 of 5 evicted experts were loaded again within 4 passes")


def test_what_if_draws_the_policies_that_are_chosen(address: str, page: Page):
    page.goto(f"{address}/residency?run=small")
    curves = chart(page, "Miss ratio by policy and budget, all passes")
    expect(curves).to_contain_text("this run")
    expect(curves).to_contain_text("belady (floor)")
    expect(curves).to_contain_text("use-rate misses the fewest, 24.0%")
    idle(page)
    page.get_by_role("radio", name="prefill").click()
    expect(chart(page, "Miss ratio by policy and budget, prefill")).to_be_visible()
    wait_for_query(page, run="small", phase="prefill")


LOOKS = {
    "overview": "/?run=small&other=omni",
    "expert map": "/expert_map?run=small&colour=load&layer=2&expert=12",
    "difference": "/expert_map?run=small&colour=difference&other=omni",
    "expert": "/expert?run=small&layer=2&expert=12",
    "salience": "/salience?run=small",
    "residency": "/residency?run=small",
    "validation": "/validation?run=small",
    "quality": "/quality?run=omni",
    "sql": "/sql?question=trust",
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_and_nothing_is_cut(address: str, browser: Browser, scheme: str):
    problems = []
    with a_user(browser, color_scheme=scheme) as page:
        for name, path in LOOKS.items():
            page.goto(f"{address}{path}")
            if name != "sql":
                expect(page.get_by_test_id("stVegaLiteChart").locator("svg").first).to_be_visible()
            problems += [f"{name}: {text}" for text in unreadable(page, PATIENCE_MS)]
    assert not problems, "\n".join(problems)


def test_validation_shows_where_trust_stands(address: str, page: Page):
    page.goto(f"{address}/validation?run=small")
    expect(chart(page, "What foretells the cost of removal: global")).to_contain_text(
        "impact_mean foretells best: rho 0.88 [0.80, 0.90]"
    )


def test_data_quality_shows_the_gaps(address: str, page: Page):
    page.goto(f"{address}/quality?run=omni")
    expect(fact(page, "Why")).to_have_text("queue full 900, not finite 100")


def test_a_query_is_run_and_kept_in_the_url(address: str, page: Page):
    page.goto(f"{address}/sql")
    choose(page, "Question", "trust")
    expect(page.get_by_text("480 rows", exact=True)).to_be_visible()  # of the newest run: 120 experts, 4 contexts
    area = page.get_by_role("textbox", name="SQL, in DuckDB's dialect")
    idle(page)
    area.fill("select name, tokens from v_run order by name")
    area.press("Control+Enter")
    expect(page.get_by_text("2 rows", exact=True)).to_be_visible()
    page.wait_for_url(lambda url: "from+v_run" in url or "from%20v_run" in url)
    idle(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV", exact=True).click()
    assert download.value.path().read_text() == '"name","tokens"\n"omni",4096\n"small",123456\n'
    idle(page)
    area.fill("select * from read_text('/etc/hostname')")
    area.press("Control+Enter")
    expect(page.get_by_text("read_text is not allowed", exact=False)).to_be_visible()


def test_two_users_look_at_different_things(address: str, browser: Browser):
    with a_user(browser) as one, a_user(browser, color_scheme="dark") as other:
        one.goto(f"{address}/expert_map?run=small&layer=2&expert=12")
        other.goto(f"{address}/expert_map?run=omni&component=talker&layer=0&expert=1&colour=load")
        expect(fact(one, "Run")).to_have_text("small")
        expect(fact(other, "Run")).to_have_text("omni")
        expect(chart(other, "Load of each expert: talker")).to_be_visible()
        idle(one)
        one.get_by_role("link", name="Validation").click()
        expect(chart(one, "What foretells the cost of removal: global")).to_be_visible()
        one.wait_for_url(lambda url: "run=small" in url)
        assert query(other.url)["colour"] == "load"


def test_a_run_that_goes_on_refreshes_by_itself(address: str, page: Page, sql: Sql):
    page.goto(f"{address}/expert_map?run=omni&component=talker&layer=0&expert=0")
    expect(fact(page, "Tokens")).to_have_text("4,096")
    page.evaluate("document.querySelector('[data-testid=stAppViewContainer]').dataset.seen = 'yes'")
    sql("update expert_trust set trust = 0.98765 where run_id = 2")
    sql(f"update run set tokens = 8192, heartbeat_at = {LATER} where run_id = 2")
    expect(fact(page, "Tokens")).to_have_text("8,192")
    expect(fact(page, "Trust")).to_have_text("0.988")
    assert page.locator("[data-seen=yes]").count() == 1, "the page was not loaded anew"
    sql(f"update run set status = 'done', finished_at = {LATER} where run_id = 2")
    expect(fact(page, "Status")).to_have_text("done")
