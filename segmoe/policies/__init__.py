"""Who leaves memory next: pure functions of logical time, of what was used, and of trust from an earlier run.

The rules are in rules.py, the order that they make in ranking.py; both are plain functions on sequences, so that a live
cache runs them as they are and a replay can compile them. Holding the experts is cache.py.
"""

from segmoe.policies.base import Policy, Victim
from segmoe.policies.ranked import Ranked
from segmoe.policies.rules import DEFAULT_POLICY, POLICIES, Rule, make_policy, make_rule

__all__ = ["DEFAULT_POLICY", "POLICIES", "Policy", "Ranked", "Rule", "Victim", "make_policy", "make_rule"]
