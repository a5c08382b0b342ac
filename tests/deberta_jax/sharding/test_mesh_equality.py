"""Pre-training computes the same numbers on every mesh, in one process and across several."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from ...support.cluster import cluster
from ...support.mesh_worker import Result, run


@pytest.fixture(scope="module")
def one_device() -> Result:
    return run({}, devices=jax.devices()[:1])


def assert_equal(actual: Result, expected: Result) -> None:
    for metrics, expected_metrics in zip(actual.metrics, expected.metrics, strict=True):
        assert metrics.keys() == expected_metrics.keys()
        for name, value in expected_metrics.items():
            assert metrics[name] == pytest.approx(value, rel=1e-5), name
    assert actual.params.keys() == expected.params.keys()
    for path, value in expected.params.items():
        assert np.linalg.norm(actual.params[path] - value) <= 1e-5 * np.linalg.norm(value), path
        np.testing.assert_allclose(actual.params[path], value, rtol=0, atol=1e-5, err_msg=path)


def assert_moments_are_split(result: Result, mesh: dict[str, int]) -> None:
    """Checks that zero and fsdp split all matrices, tensor some of them, and zero no vector."""
    zero, fsdp, tensor = (mesh.get(axis, 1) for axis in ("zero", "fsdp", "tensor"))
    matrices = {path: shape for path, shape in result.moments.items() if len(shape) > 1 and "classifier" not in path}
    assert len(matrices) > 40
    for path, shape in matrices.items():
        over = tensor if any(part in path for part in ("word_embeddings", "_proj", "feed_forward", "output")) else 1
        assert np.prod(result.shards[path]) * zero * fsdp * over == np.prod(shape), path
    biases = [path for path in result.moments if path.endswith("output/bias")]
    assert biases
    assert all(result.shards[path] == result.moments[path] for path in biases)


# Every axis, alone or with others. The meshes marked long have no axis that the other tests leave out.
@pytest.mark.parametrize(
    ("mesh", "devices"),
    [
        ({"zero": 2, "fsdp": 2, "tensor": 2}, 8),
        pytest.param({"data": 2, "zero": 4}, 8, marks=pytest.mark.slow),
        pytest.param({"data": 2}, 2, marks=pytest.mark.long),
        pytest.param({"data": 8}, 8, marks=pytest.mark.long),
        pytest.param({"fsdp": 4, "tensor": 2}, 8, marks=pytest.mark.long),
        pytest.param({"data": 2, "fsdp": 2, "tensor": 2}, 8, marks=pytest.mark.long),
        pytest.param({"zero": 8}, 8, marks=pytest.mark.long),
    ],
    ids=lambda value: "x".join(f"{axis}{size}" for axis, size in value.items()) if isinstance(value, dict) else "",
)
def test_three_steps_on_a_mesh_equal_one_device(mesh: dict[str, int], devices: int, one_device: Result) -> None:
    result = run(mesh, devices=jax.devices()[:devices])
    assert_equal(result, one_device)
    assert_moments_are_split(result, mesh)


@pytest.mark.slow
def test_accumulation_on_a_mesh_equals_one_device() -> None:
    expected = run({}, devices=jax.devices()[:1], accumulation=2)
    assert_equal(run({"data": 2, "zero": 2}, devices=jax.devices()[:4], accumulation=2), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "devices", "mesh"),
    [
        (2, 4, {"fsdp": 4, "tensor": 2}),
        pytest.param(2, 1, {"data": 2}, marks=pytest.mark.long),
        pytest.param(4, 2, {"fsdp": 4, "tensor": 2}, marks=pytest.mark.long),
        pytest.param(4, 2, {"data": 2, "zero": 4}, marks=pytest.mark.long),
    ],
    ids=["2x4-fsdp-tensor", "2x1-data", "4x2-fsdp-tensor", "4x2-zero"],
)
def test_several_processes_equal_one(
    processes: int, devices: int, mesh: dict[str, int], one_device: Result, tmp_path: Path
) -> None:
    settings = json.dumps({"mesh": mesh, "output": str(tmp_path)})
    command = ["-m", "tests.support.mesh_worker", settings]
    with cluster(command, tmp_path / "logs", count=processes, devices=devices) as workers:
        for worker in workers:
            assert worker.wait_for_exit(900) == 0, worker.output[-2000:]
    figures = json.loads((tmp_path / "figures.json").read_text())
    with np.load(tmp_path / "params.npz") as params:
        shapes = {name: {path: tuple(shape) for path, shape in figures[name].items()} for name in ("moments", "shards")}
        result = Result(figures["metrics"], dict(params), **shapes)
    assert_equal(result, one_device)
    assert_moments_are_split(result, mesh)
