"""The same on every machine: what its user has set does not matter here, nor how slow it is.

`--hypothesis-profile default` draws new examples.
"""

import os

from hypothesis import HealthCheck, settings

OTHERS = {"COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "XDG_CACHE_HOME"}
"""Which would be settings of each command that a test runs, as are OBSERVER_RUN_BATCH and its like."""

for name in list(os.environ):
    if name in OTHERS or (name.startswith(("OBSERVER_", "SEGMOE_")) and name != "SEGMOE_SCREENSHOTS"):
        del os.environ[name]

settings.register_profile(
    "the same everywhere", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("the same everywhere")
