"""What is said about rows, checked by hand."""

from dashboard import findings


def row(policy: str, miss_ratio: float, is_own: bool = False) -> dict:
    return dict(policy=policy, miss_ratio=miss_ratio, is_own=is_own, budget_experts=64) | dict(
        miss_ratio_low=miss_ratio - 0.1, miss_ratio_high=miss_ratio + 0.1
    )


def test_a_setting_is_told_beside_the_best_and_the_least():
    rows = [row("belady", 0.15), row("use-rate", 0.24), row("lru", 0.25, is_own=True)]
    assert findings.what_if(rows, "belady") == (
        "With 64 experts this run's lru misses 25.0% [15.0%, 35.0%] of the accesses; "
        "use-rate misses the fewest, 24.0%; none could miss fewer than 15.0% (Belady)."
    )
    rows = [row("use-rate", 0.24, is_own=True), row("lru", 0.25)]
    assert findings.what_if(rows, "belady").endswith("of the accesses; no other policy misses fewer.")
    assert "do not hold" in findings.what_if([], "belady")


def test_the_own_policy_the_best_and_familiar_ones_are_worth_a_line():
    policies = [row("use-rate", 0.24), row("random", 0.3), row("lru", 0.25, is_own=True)]
    assert findings.worth_a_line(policies, ["lru", "lfu"]) == ["lru", "use-rate"]


def test_phases_are_told_apart():
    rows = [dict(phase="prefill", x=0.2), dict(phase="decode", x=0.9), dict(phase="prefill", x=0.1)]
    assert findings.course(rows, "x", "the x") == (
        "In prefill the x began at 0.20 and stands at 0.10, between 0.10 and 0.20. "
        "In decode the x began at 0.90 and stands at 0.90, between 0.90 and 0.90."
    )
    assert findings.course(rows[:1], "x", "the x") == "The x began at 0.20 and stands at 0.20, between 0.20 and 0.20."
    assert findings.course([dict(phase="decode", x=None)], "x", "the x") == "There is no value of the x yet."


def test_trust_is_not_said_to_be_behind_its_equal():
    def ranked(statistic: str, rho: float, is_difference: bool = False) -> dict:
        return dict(statistic=statistic, rho=rho, low=rho - 0.1, high=rho + 0.1, is_difference=is_difference)

    rows = [ranked("convergence", 0.9), ranked("trust", 0.9), ranked("trust - load", 0.95, is_difference=True)]
    assert findings.validity(rows, "global") == (
        "Global, trust foretells best: rho 0.90 [0.80, 1.00]. trust - load: rho 0.95 [0.85, 1.05]."
    )
    rows = [ranked("impact", 0.9), ranked("trust", 0.6)]
    assert "a difference that the intervals confirm" in findings.validity(rows, "global")


def test_coverage_is_told_by_context():
    rows = [dict(context="*", share=0.93), dict(context="code", share=0.85)]
    assert findings.coverage(rows).endswith("what the other texts said: all 93.0%, code 85.0%.")
