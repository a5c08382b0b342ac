"""Flags for the TPU compiler: it knows them, and they do what tpu_scripts/xla_flags.sh says."""

import os
import subprocess
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.train.compile_ahead.hlo_costs import read_cost
from deberta_jax.train.compile_ahead.report import reductions
from deberta_jax.train.compile_ahead.tpu_compiler import CHIPS, out_of_cache, topology
from deberta_jax.train.compile_ahead.xla_flags import XLA_FLAGS, parse_flags

from ...support.paths import TPU_SCRIPTS
from ...support.tpu_recorder import xla_flags
from ...support.tpu_topologies import needs_libtpu, small_slice


@pytest.fixture(autouse=True)
def _no_cache() -> Iterator[None]:
    with out_of_cache():
        yield


def compile_with(generation: str, options: dict[str, str]) -> None:
    _, devices = topology(small_slice(generation))
    place = jax.sharding.SingleDeviceSharding(devices[0])
    argument = jax.ShapeDtypeStruct((8, 128), jnp.float32, sharding=place)
    jax.jit(lambda x: x + 1).lower(argument).compile(compiler_options=options)


@needs_libtpu
@pytest.mark.parametrize("generation", CHIPS)
def test_the_compiler_knows_every_flag(generation: str) -> None:
    options = parse_flags(xla_flags(generation))
    assert bool(options) == (generation in ("v5e", "v5p", "v6e"))
    compile_with(generation, options)


@needs_libtpu
def test_the_compiler_refuses_a_flag_that_it_does_not_know() -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
        compile_with("v5e", {"xla_enable_async_reduce_scatter": "true"})


@needs_libtpu
@pytest.mark.long
@pytest.mark.parametrize("generation", ["v5e", "v5p", "v6e"])
def test_the_flags_make_the_reduction_of_gradients_asynchronous(generation: str) -> None:
    """Each of them is needed."""
    _, devices = topology(small_slice(generation))
    mesh = jax.sharding.Mesh(np.array(devices), ("data",))
    whole, split = (jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in ((), ("data",)))

    def step(params: list[jax.Array], x: jax.Array) -> list[jax.Array]:
        def loss(params: list[jax.Array]) -> jax.Array:
            y = x
            for param in params:
                y = jax.nn.gelu(y @ param)
            return jnp.mean(y**2)

        return [param - 0.1 * gradient for param, gradient in zip(params, jax.grad(loss)(params), strict=True)]

    params = [jax.ShapeDtypeStruct((1024, 1024), jnp.float32, sharding=whole)] * 4
    batch = jax.ShapeDtypeStruct((1024 * len(devices), 1024), jnp.float32, sharding=split)
    lowered = jax.jit(step, donate_argnums=0).lower(params, batch)
    options = XLA_FLAGS[generation]
    memory = dict.fromkeys(("argument_bytes", "temporary_bytes", "program_bytes", "peak_bytes"), 0)

    def asynchronous(options: dict[str, str]) -> float:
        """Share of the gradients' bytes; the first layer's come when there is nothing left to compute."""
        text = lowered.compile(compiler_options=options).as_text() or ""
        beside, every = reductions(read_cost(text, kernels={}, **memory))
        return beside / every

    assert 0.5 <= asynchronous(options) < 1
    for left in options:
        assert asynchronous({name: value for name, value in options.items() if name != left}) == 0, left


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("generation", CHIPS)
def test_the_flags_are_accepted_where_run_puts_them(generation: str) -> None:
    """In LIBTPU_INIT_ARGS, which libtpu reads when it is loaded; a flag that it does not know ends the process."""
    program = (
        f"from deberta_jax.train.compile_ahead.tpu_compiler import topology; topology('{small_slice(generation)}')"
    )

    def status(flags: str) -> int:
        environment = os.environ | {"LIBTPU_INIT_ARGS": flags}
        return subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, check=False
        ).returncode

    assert status(xla_flags(generation)) == 0
    assert status(xla_flags(generation) + " --xla_no_such_flag=true") != 0


def test_flags_of_an_unknown_chip_are_an_error() -> None:
    done = subprocess.run(
        ["bash", "-c", f"source {TPU_SCRIPTS / 'xla_flags.sh'}; xla_flags v3"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "v3 given" in done.stderr


def test_flags_of_shells_and_of_python_are_the_same() -> None:
    assert {generation: parse_flags(xla_flags(generation)) for generation in CHIPS} == XLA_FLAGS


def test_what_is_not_a_flag_is_an_error() -> None:
    assert parse_flags("--a=1  --b=x=y") == {"a": "1", "b": "x=y"}
    for text in ("a=1", "--a", "--=1"):
        with pytest.raises(ValueError, match="not a flag of the compiler; give --name=value"):
            parse_flags(text)
