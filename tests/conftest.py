"""Tests run on the CPU, as eight devices so that sharding is real; shapes and rngs are checked by jax where it can."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
