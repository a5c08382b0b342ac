"""How long a step may take before it counts as hanging."""

from deberta_jax.train.configs import HostsConfig
from deberta_jax.train.hosts.step_limit import StepLimit


def test_long_steps_raise_the_limit_and_the_first_one_does_not_count() -> None:
    limit, now = StepLimit(HostsConfig(stall_after=120, slow_after=1800)), 0.0
    for step, seconds in ((3, 0.125), (4, 50.0), (5, 40.0), (6, 0.0)):  # resumed from step 2
        limit.time_step(step, now)
        now += seconds
    assert limit.knows_steps
    assert limit.of_phases(["step", "input"]) == 400
    assert limit.of_phases(["step", "save"]) == 1800


def test_short_steps_have_the_limit_of_the_settings() -> None:
    limit = StepLimit(HostsConfig(stall_after=120, slow_after=1800))
    assert not limit.knows_steps
    assert limit.of_phases(["step"]) == 120
    for step in range(5):
        limit.time_step(step, 0.1 * step)
    assert limit.of_phases(["step"]) == 120
