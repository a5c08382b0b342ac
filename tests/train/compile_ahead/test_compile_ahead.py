"""Compiling ahead for TPUs: what is read out of a program, that the step is the run's own, and what a mistake says."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import Deberta, DebertaConfig
from deberta_jax.__main__ import main
from deberta_jax.sharding import make_mesh
from deberta_jax.train.compile_ahead import step_program, tpu_compiler
from deberta_jax.train.compile_ahead.command import CompileAheadConfig, _changes, _chunks, shortfall
from deberta_jax.train.compile_ahead.hlo_costs import read_cost
from deberta_jax.train.compile_ahead.model_flops import attention_flops, encoder_flops, layer_flops, masked_lm_flops
from deberta_jax.train.compile_ahead.report import Timing, plot_sweep, print_report
from deberta_jax.train.compile_ahead.step_program import build
from deberta_jax.train.compile_ahead.tpu_compiler import CHIPS, GIB, compile_for_tpu, out_of_memory, topology, trace
from deberta_jax.train.compile_ahead.xla_flags import XLA_FLAGS

from ...support.compile_reports import report
from ...support.hlo_programs import BETWEEN, NO_MEMORY, PROGRAM
from ...support.small_models import SMALL
from ...support.tpu_topologies import needs_libtpu, small_slice


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        ("the total memory required for HLO temporaries (63.66G) exceeds available HBM (15.75G).", 63.66),
        ("Ran out of memory in memory space hbm. Used 16.09G of 15.75G hbm. Exceeded hbm capacity by 346.52M.", 16.09),
    ],
)
def test_the_compiler_says_how_much_is_missing(message: str, needed: float) -> None:
    error = out_of_memory(message)
    assert error is not None
    assert (error.needed, error.available) == (int(needed * GIB), int(15.75 * GIB))
    assert out_of_memory("Ran out of memory in memory space vmem") is None


# ---------------------------------------------------------------- operations of the mathematics


def test_attention_of_v3_base() -> None:
    """Four products of 512 x 512 x 64 a head: scores, c2p, p2c, values; the table has 512 rows in reach."""
    config = DebertaConfig.named("deberta-v3-base")
    assert attention_flops(config, 512) == 12 * 4 * 2 * 512 * 512 * 64
    assert attention_flops(config, 64) == 12 * 2 * 64 * 64 * (64 + 64 + 127 + 127)
    masked = masked_lm_flops(config, 512, 77) - encoder_flops(config, 512, 11)
    keys_and_values, head = 2 * 2 * 512 * 768**2, 2 * 77 * 768 * (768 + 128100)
    assert masked == keys_and_values + 2 * layer_flops(config, 512, 77) + head


def test_products_of_a_traced_encoder_are_those_counted() -> None:
    config = SMALL.replace(relative_attention=False, pos_att_type=(), position_buckets=-1, conv_kernel_size=0)
    ids = jnp.ones((1, 16), jnp.int32)
    params = jax.eval_shape(Deberta(config).init, jax.random.key(0), ids)
    jaxpr = jax.make_jaxpr(lambda params: Deberta(config).apply(params, ids).last_hidden_state)(params)

    def products(jaxpr) -> int:
        total = 0
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                depth = [equation.invars[0].aval.shape[axis] for axis in contracted]
                total += 2 * equation.outvars[0].aval.size * int(jnp.prod(jnp.array(depth)))
            inner = [getattr(one, "jaxpr", one) for one in jax.tree.leaves(equation.params)]
            total += sum(products(one) for one in inner if hasattr(one, "eqns"))
        return total

    assert products(jaxpr.jaxpr) == encoder_flops(config, 16)


# ---------------------------------------------------------------- the step


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "small.json"
    path.write_text(json.dumps(SMALL.to_json()))
    return str(path)


@pytest.mark.parametrize(
    "options",
    [
        {"task": "finetune", "num_labels": 3},
        pytest.param({"accumulation": 2, "remat": True}, marks=pytest.mark.long),
        pytest.param({"task": "mlm"}, marks=pytest.mark.long),
    ],
)
def test_the_step_runs_on_what_was_described(model: str, options: dict) -> None:
    """The program that is compiled ahead takes arrays of these shapes and shardings, and gives the state back."""
    config = CompileAheadConfig(model=model, global_batch=16, sequence_length=16, dtype="float32", **options)
    program = build(config, jax.devices())

    def array(one: jax.ShapeDtypeStruct) -> jax.Array:
        return jax.device_put(jnp.zeros(one.shape, one.dtype), one.sharding)

    state, metrics = program.step(jax.tree.map(array, program.state), jax.tree.map(array, program.batch))
    assert int(state.step) == 1
    described = jax.tree.map(lambda one: (one.shape, one.dtype, one.sharding), program.state)
    assert jax.tree.map(lambda one: (one.shape, one.dtype, one.sharding), state) == described
    assert all(bool(jnp.isfinite(value)) for value in metrics.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_batch": 12}, r"global_batch 12 does not divide by the mesh axis data of size 8; .* multiple of 8"),
        (
            {"global_batch": 12, "mesh": step_program.MeshConfig(fsdp=2)},
            r"global_batch / data 3 does not divide by the mesh axis fsdp of size 2; .* 8",
        ),
        ({"global_batch": 15, "accumulation": 2}, r"global_batch 15 does not divide by accumulation of size 2; .* 16"),
        (
            {"global_batch": 8, "mesh": step_program.MeshConfig(fsdp=3)},
            "a mesh of zero 1 x fsdp 3 x tensor 1 does not divide 8 devices",
        ),
    ],
)
def test_what_does_not_divide_is_named(model: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(CompileAheadConfig(model=model, **options), jax.devices())


def test_a_topology_that_does_not_exist_lists_those_that_do(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("v5e:3x3", "v5e-16", "v5litepod:4x4", ""):
        assert main(["compile-ahead", "--topology", name]) == 1
        error = capsys.readouterr().err
        assert f"no topology {name!r}" in error
        assert all(f"{kind}: {' '.join(chip.shapes)}" in error for kind, chip in CHIPS.items())


def test_a_missing_compiler_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tpu_compiler.importlib.util, "find_spec", lambda name: None)
    assert main(["compile-ahead", "--topology", "v5e:2x2"]) == 1
    assert "pip install deberta-jax[tpu]" in capsys.readouterr().err


# ---------------------------------------------------------------- the report


def test_times_and_the_bill() -> None:
    cost = read_cost(PROGRAM, kernels={("kernel", ((4, 512), (4,))): 1000}, **NO_MEMORY)
    timing = Timing.of(cost, CHIPS["v5e"], axes=2, devices=8, flops=10**9, tokens_per_step=8192, tokens=8.192e9)
    assert timing.compute_seconds == pytest.approx(3820 / 1.5e9)
    assert timing.unpriced_seconds == pytest.approx(1024000 / 0.82e12)
    wires = {(one.kind, one.group): one.wire_bytes for one in cost.collectives}
    gathering, computing = wires["all-gather", 8] / (2 * 90e9), 20 / 1.5e9  # the whole slice: both axes of the torus
    assert gathering < computing
    waits = wires["all-reduce", 8] / (2 * 90e9) + wires["reduce-scatter", 4] / 90e9
    assert timing.collective_seconds == pytest.approx(waits)
    assert timing.hidden_seconds == pytest.approx(gathering)
    assert timing.network_seconds == 0
    assert timing.step_seconds == timing.compute_seconds + timing.unpriced_seconds + timing.collective_seconds
    assert timing.chip_hours == pytest.approx(1e6 * timing.step_seconds / 3600 * 8)
    assert timing.days * 24 * 8 == pytest.approx(timing.chip_hours)
    assert timing.mfu == pytest.approx(1e9 / (timing.step_seconds * 8 * 197e12))


def test_time_between_slices_is_that_of_the_network_between_them() -> None:
    cost = read_cost(BETWEEN, kernels={}, **NO_MEMORY)
    timing = Timing.of(cost, CHIPS["v5e"], axes=2, devices=12, slices=3, flops=1, tokens_per_step=8192, tokens=8.192e9)
    sent, pair, alone = 8192 / 3.125e9, 12288 / 180e9, 12288 / 180e9
    beside = min(sent, 11000 / 1.5e9) + min(pair, 100 / 1.5e9)
    assert timing.network_seconds == pytest.approx(sent)
    assert timing.hidden_seconds == pytest.approx(beside)
    assert timing.collective_seconds == pytest.approx(sent + pair + alone - beside)


def test_a_kernel_without_cycles_is_named() -> None:
    cost = read_cost(PROGRAM, kernels={}, **NO_MEMORY)
    assert (cost.kernel_cycles, cost.unpriced) == ({}, {"gather": 1, "pallas_call": 3})


def test_a_loop_of_unknown_length_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"how often the loop while\.1"):
        read_cost(PROGRAM.replace("constant(3)", "add(%a, %b)"), kernels={}, **NO_MEMORY)


def test_what_is_tried_where_it_does_not_fit() -> None:
    config = CompileAheadConfig(global_batch=128)
    tried = list(_changes(config, report(config, needed=30, fits=False)))
    assert [(one.accumulation, one.remat, one.mesh.fsdp) for one in tried] == [
        (4, False, 1),  # 24 GiB of temporaries in 9.75
        (1, True, 1),
        (16, True, 1),
        (16, True, 8),
    ]
    split = [one.mesh.fsdp for one in _changes(config, report(config, needed=18, fits=False))]
    assert split == [1, 1, 2, 1, 8]  # half of the state is as much as is missing
    assert _chunks(10, 0, 16) is None


def test_the_shortfall_and_what_fits_are_said() -> None:
    config = CompileAheadConfig(global_batch=128)
    failed = report(config, needed=30, fits=False)
    other = report(dataclasses.replace(config, accumulation=4), needed=12, fits=True)
    said = shortfall(failed, [other, report(dataclasses.replace(config, remat=True), needed=20, fits=False)])
    assert "needs 30.00 GiB and has 15.75, short by 14.25 GiB (compiler estimate); what fits: --accumulation 4" in said
    assert "--remat" not in said


def test_a_sweep_is_drawn(tmp_path: Path) -> None:
    configs = [CompileAheadConfig(global_batch=batch) for batch in (64, 128)]
    reports = [report(one, needed=8 * (number + 1), fits=number == 0) for number, one in enumerate(configs)]
    plot_sweep(reports, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 10_000


def test_slices_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    config = CompileAheadConfig(topology="v5e:8x8", slices=2, global_batch=128)
    print_report(report(config, needed=8, fits=True), CHIPS["v5e"], [])
    printed = capsys.readouterr().out
    assert "2 slices of v5e:8x8" in printed
    assert "asynchronous: 0% of the bytes of reductions within a slice" in printed


# ---------------------------------------------------------------- the compiler itself


@needs_libtpu
@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:1x1", "v5e:16x16", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_topologies_have_the_devices_of_their_shape(name: str) -> None:
    chip, devices = topology(name)
    assert len(devices) == chip.devices * jnp.prod(jnp.array(tpu_compiler.sizes(name)))


@needs_libtpu
def test_devices_of_several_slices_say_which_is_theirs() -> None:
    _, devices = topology("v5e:2x4", slices=3)
    assert [sum(one.slice_index == number for one in devices) for number in range(3)] == [8, 8, 8]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--topology", "v5e:2x2", "--slices", "0"], "slices is 0; give 1 or more"),
        (["--topology", "v4:2x2x1", "--slices", "2"], "several slices are for v5e, v5p, v6e, tpu7x"),
    ],
)
def test_slices_that_cannot_be(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile-ahead", *options]) == 1
    assert message in capsys.readouterr().err


@needs_libtpu
def test_a_flag_that_the_compiler_does_not_know_is_named() -> None:
    _, devices = topology("v5e:1x1")
    place = jax.sharding.NamedSharding(make_mesh(devices=devices), jax.sharding.PartitionSpec())
    traced = trace(jax.jit(lambda x: x + 1), jax.ShapeDtypeStruct((8, 128), jnp.float32, sharding=place))
    with pytest.raises(ValueError, match="does not know the flag xla_no_such_flag; leave it out"):
        compile_for_tpu(traced, flags={"xla_no_such_flag": "true"})


@needs_libtpu
@pytest.mark.slow
def test_slices_exchange_a_shard_of_the_gradient_each_chip() -> None:
    """The sum within a slice goes over its links, the sum over slices over the network between them."""
    _, devices = topology("v5e:2x2", slices=2)
    ordered = sorted(devices, key=lambda one: (one.slice_index, one.id))
    mesh = jax.sharding.Mesh(np.array(ordered), ("data",))
    whole, split = (jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in ((), ("data",)))

    def step(weight: jax.Array, x: jax.Array) -> jax.Array:
        return weight - jax.grad(lambda weight: jnp.mean(jnp.sin(x @ weight)))(weight)

    weight = jax.ShapeDtypeStruct((1024, 1024), jnp.float32, sharding=whole)
    batch = jax.ShapeDtypeStruct((8 * 128, 1024), jnp.float32, sharding=split)
    compiled = compile_for_tpu(trace(jax.jit(step), weight, batch), flags=XLA_FLAGS["v5e"])
    found = tpu_compiler.cost_of(compiled, kernels={}).collectives
    sent = [(one.kind, one.group, one.bytes, one.wire_bytes) for one in found if one.network == "dcn"]
    shard = 1024 * 1024 * 4 // 4
    assert sent == [("all-reduce", 2, shard, shard)]
    assert {one.group for one in found if one.network == "ici"} == {4}


@needs_libtpu
@pytest.mark.parametrize("kind", CHIPS)
def test_the_table_of_chips_agrees_with_the_compiler(kind: str) -> None:
    """HBM as it says when there is too little; the clock: a large product is never faster than the peak."""
    chip, devices = topology(small_slice(kind))
    mesh = make_mesh(devices=devices[:1])
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    huge = jax.ShapeDtypeStruct((200_000, 100_000), jnp.float32, sharding=place)
    with pytest.raises(tpu_compiler.OutOfMemoryError) as error:
        compile_for_tpu(trace(jax.jit(lambda x: x + 1), huge))
    assert error.value.available == chip.hbm
    square = jax.ShapeDtypeStruct((8192, 8192), jnp.bfloat16, sharding=place)
    cycles = tpu_compiler.cost_of(compile_for_tpu(trace(jax.jit(jnp.dot), square, square)), kernels={}).cycles
    assert 0.6 < 2 * 8192**3 * chip.clock / cycles / chip.peak < 1


@needs_libtpu
@pytest.mark.slow
def test_a_step_is_compiled_and_reported(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--topology", "v5e:2x2", "--global-batch", "16", "--sequence-length", "16", "--mesh.fsdp", "2"]
    assert main(["compile-ahead", "--model", model, *options, "--tokens", "1e9", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"]
    assert found["mesh"] == {"data": 2, "zero": 1, "fsdp": 2, "tensor": 1}
    assert found["cost"]["argument_bytes"] >= found["parameter_bytes"] + found["optimizer_bytes"]
    assert found["optimizer_bytes"] == pytest.approx(2 * found["parameter_bytes"], rel=0.01)
    assert "pallas_call" not in found["cost"]["unpriced"]
    assert any(one["kind"] == "all-reduce" for one in found["cost"]["collectives"])
    assert 0 < found["timing"]["mfu"] < 1


@needs_libtpu
@pytest.mark.slow
def test_what_does_not_fit_is_status_1_with_the_shortfall(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--topology",
        "v5e:1x1",
        "--global-batch",
        "65536",
        "--sequence-length",
        "128",
        "--task",
        "finetune",
        "--xla-flags",
        "",
    ]
    assert main(["compile-ahead", "--model", model, *options, "--alternatives", "1"]) == 1
    printed = capsys.readouterr()
    assert "short by" in printed.err
    assert "what fits: --accumulation" in printed.err
    assert "compiler estimate" in printed.out
