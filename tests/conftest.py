"""The same examples on every machine, however slow it is; `--hypothesis-profile default` draws new ones."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "the same everywhere", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("the same everywhere")
