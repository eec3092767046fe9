"""Settings of hypothesis: a few fixed examples in `make test`, 10,000 random ones in `make fuzz`."""

from hypothesis import HealthCheck, settings

from tests.fuzzing.inputs import FUZZING, PATIENCE

CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
settings.register_profile(
    "few", max_examples=40, deadline=PATIENCE * 1000, derandomize=True, database=None, suppress_health_check=CHECKS
)
settings.register_profile("many", settings.get_profile("few"), max_examples=10_000, derandomize=False, print_blob=True)
settings.load_profile("many" if FUZZING else "few")
