"""Tests that the TPU compiler knows the flags of tpu_scripts/xla_flags.sh, and that they have the described effect."""

import os
import subprocess
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.errors import UserError
from deberta_jax.train.compile_ahead.hlo_collectives import reduction_bytes
from deberta_jax.train.compile_ahead.hlo_costs import read_cost
from deberta_jax.train.compile_ahead.tpu_compiler import CHIPS, topology, without_compilation_cache
from deberta_jax.train.compile_ahead.xla_flags import XLA_FLAGS, parse_flags

from ...support.paths import TPU_SCRIPTS
from ...support.tpu_recorder import xla_flags
from ...support.tpu_topologies import needs_libtpu, small_slice


@pytest.fixture(autouse=True)
def _no_cache() -> Iterator[None]:
    with without_compilation_cache():
        yield


def compile_with(generation: str, options: dict[str, str]) -> None:
    _, devices = topology(small_slice(generation))
    sharding = jax.sharding.SingleDeviceSharding(devices[0])
    argument = jax.ShapeDtypeStruct((8, 128), jnp.float32, sharding=sharding)
    jax.jit(lambda x: x + 1).lower(argument).compile(compiler_options=options)


@needs_libtpu
@pytest.mark.parametrize("generation", CHIPS)
def test_compiler_knows_every_flag(generation: str) -> None:
    options = parse_flags(xla_flags(generation))
    assert bool(options) == (generation in ("v5e", "v5p", "v6e"))
    compile_with(generation, options)


@needs_libtpu
@pytest.mark.long
@pytest.mark.parametrize("generation", ["v5e", "v5p", "v6e"])
def test_each_flag_is_needed_to_reduce_gradients_asynchronously(generation: str) -> None:
    _, devices = topology(small_slice(generation))
    mesh = jax.sharding.Mesh(np.array(devices), ("data",))
    replicated, split = (
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in ((), ("data",))
    )

    def step(params: list[jax.Array], x: jax.Array) -> list[jax.Array]:
        def loss(params: list[jax.Array]) -> jax.Array:
            y = x
            for param in params:
                y = jax.nn.gelu(y @ param)
            return jnp.mean(y**2)

        return [param - 0.1 * gradient for param, gradient in zip(params, jax.grad(loss)(params), strict=True)]

    params = [jax.ShapeDtypeStruct((1024, 1024), jnp.float32, sharding=replicated)] * 4
    batch = jax.ShapeDtypeStruct((1024 * len(devices), 1024), jnp.float32, sharding=split)
    lowered = jax.jit(step, donate_argnums=0).lower(params, batch)
    options = XLA_FLAGS[generation]

    def asynchronous_share(options: dict[str, str]) -> float:
        """Returns the share of the gradients' bytes; no computation remains beside the first layer's gradient."""
        text = lowered.compile(compiler_options=options).as_text() or ""
        reductions = reduction_bytes(read_cost(text).collectives)
        return reductions.asynchronous / reductions.total

    assert 0.5 <= asynchronous_share(options) < 1
    for removed in options:
        others = {name: value for name, value in options.items() if name != removed}
        assert asynchronous_share(others) == 0, removed


def status_of_loading_libtpu(generation: str, flags: str) -> int:
    """Returns the exit status of a process that loads libtpu with LIBTPU_INIT_ARGS, as tpu_scripts do."""
    program = (
        f"from deberta_jax.train.compile_ahead.tpu_compiler import topology; topology('{small_slice(generation)}')"
    )
    environment = os.environ | {"LIBTPU_INIT_ARGS": flags}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
    return done.returncode


@needs_libtpu
@pytest.mark.slow
def test_libtpu_accepts_the_flags_when_it_is_loaded() -> None:
    """The environment's flags do not depend on the chip, so one process loads the flags of all."""
    flags = dict.fromkeys(word for generation in CHIPS for word in xla_flags(generation).split())
    assert status_of_loading_libtpu("v5e", " ".join(flags)) == 0
    assert status_of_loading_libtpu("v5e", "--xla_no_such_flag=true") != 0


def test_unknown_chip_is_an_error() -> None:
    done = subprocess.run(
        ["bash", "-c", f"source '{TPU_SCRIPTS / 'xla_flags.sh'}'; xla_flags v3"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "v3 given" in done.stderr


def test_shell_and_python_have_the_same_flags() -> None:
    assert {generation: parse_flags(xla_flags(generation)) for generation in CHIPS} == XLA_FLAGS


def test_flags_are_parsed() -> None:
    assert parse_flags("--a=1  --b=x=y") == {"a": "1", "b": "x=y"}


@pytest.mark.parametrize("text", ["a=1", "--a", "--=1"])
def test_word_that_is_not_a_flag_is_an_error(text: str) -> None:
    with pytest.raises(UserError, match="not a flag of the TPU compiler; give --name=value"):
        parse_flags(text)
