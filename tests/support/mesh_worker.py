"""Runs three steps of replaced token detection on a mesh, in the test's process or in several that share the mesh.

`cluster.cluster` starts each process as

    python -m tests.support.mesh_worker '{"mesh": {"fsdp": 4}, "output": "folder"}' --hosts....
"""

import argparse
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

BATCH, LENGTH, SLOTS, STEPS = 8, 16, 4, 3


@dataclasses.dataclass
class Result:
    """What a run computed, and how its moments were split.

    Attributes:
      metrics: Metrics of each step.
      params: Every parameter as a whole, by path.
      moments: Global shape of each of the optimizer's moments, by path.
      shards: Shape of the first local shard of each moment, by path.
    """

    metrics: list[dict[str, float]]
    params: dict[str, np.ndarray]
    moments: dict[str, tuple[int, ...]]
    shards: dict[str, tuple[int, ...]]


def run(mesh: dict[str, int], *, devices: list[Any], **changes: Any) -> Result:
    """Pre-trains tiny v3 models; the initial weights and the batches do not depend on the mesh.

    Args:
      mesh: Sizes of the mesh's axes.
      devices: Devices of the mesh.
      changes: Changes to the run's settings.
    """
    from deberta_jax.rtd import RTDConfig, RTDModels
    from deberta_jax.sharding import local_batch_indices, make_mesh, named_shardings, parameter_path, place_batch
    from deberta_jax.train import pretrain
    from deberta_jax.train.configs import OptimizerConfig

    from .configs import pretrain_config
    from .small_models import SMALL

    model = SMALL.replace(
        vocab_size=64, num_hidden_layers=2, max_position_embeddings=32, position_buckets=8, initializer_range=0.1
    )
    config = pretrain_config(
        batch_size=BATCH,
        sequence_length=LENGTH,
        steps=10,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup=0),
        **changes,
    )
    models_config = RTDConfig(discriminator=model.replace(num_hidden_layers=1), generator=model)  # fewest layers
    optimizers = pretrain.build_optimizers(config)
    create = functools.partial(pretrain.build_state, config, models_config, optimizers, {})
    device_mesh = make_mesh(**mesh, devices=devices)
    placement = named_shardings(jax.eval_shape(create), device_mesh)
    step = jax.jit(
        pretrain.build_step(
            RTDModels.build(models_config), optimizers, config, sharing=models_config.embedding_sharing
        ),
        donate_argnums=0,
        out_shardings=(placement, None),
    )
    metrics = []
    with jax.set_mesh(device_mesh):
        state = jax.jit(create, out_shardings=placement)()
        indices = local_batch_indices(device_mesh, BATCH)
        for number in range(STEPS):
            batch = {name: values[indices] for name, values in packed_batch(number).items()}
            state, step_metrics = step(state, place_batch(batch, device_mesh))
            metrics.append({name: float(value) for name, value in jax.device_get(step_metrics).items()})
    assert step._cache_size() == 1, "the step was compiled more than once"
    moments = {parameter_path(path): leaf for path, leaf in jax.tree.leaves_with_path(state.opt_state) if leaf.ndim}
    # One program for all parameters: gathering them one by one compiles a program for each shape.
    whole = NamedSharding(device_mesh, PartitionSpec())
    gathered = jax.jit(lambda params: params, out_shardings=whole)(state.params)
    params = {parameter_path(path): leaf.addressable_data(0) for path, leaf in jax.tree.leaves_with_path(gathered)}
    return Result(
        metrics,
        jax.device_get(params),
        {path: leaf.shape for path, leaf in moments.items()},
        {path: leaf.addressable_shards[0].data.shape for path, leaf in moments.items()},
    )


def packed_batch(number: int) -> dict[str, np.ndarray]:
    """Returns a global batch of packed rows with padding, with the fields that `pretrain` reads."""
    random = np.random.default_rng(number)
    ids = random.integers(5, 64, (BATCH, LENGTH), dtype=np.int32)
    segments = np.repeat([[1, 2]], LENGTH // 2, axis=1).repeat(BATCH, axis=0).astype(np.int32)
    segments[:, LENGTH - 2 :] = 0
    positions = np.sort(random.permuted(np.tile(np.arange(LENGTH - 2), (BATCH, 1)), axis=1)[:, :SLOTS], axis=1)
    labels = np.take_along_axis(ids, positions, axis=1)
    labels[::3, -1] = 0  # unused slots
    np.put_along_axis(ids, positions, 4, axis=1)
    return {
        "input_ids": ids,
        "segment_ids": segments,
        "masked_positions": positions.astype(np.int32),
        "masked_labels": labels,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("settings", type=json.loads)
    parser.add_argument("--hosts.coordinator", dest="coordinator")
    parser.add_argument("--hosts.count", dest="count", type=int)
    parser.add_argument("--hosts.index", dest="index", type=int)
    options = parser.parse_args()
    settings = options.settings
    jax.distributed.initialize(options.coordinator, options.count, options.index, initialization_timeout=600)
    result = run(settings["mesh"], devices=jax.devices())
    if options.index == 0:
        output = Path(settings["output"])
        np.savez(output / "params.npz", **result.params)
        figures = {"metrics": result.metrics, "moments": result.moments, "shards": result.shards}
        (output / "figures.json").write_text(json.dumps(figures))
    jax.distributed.shutdown()


if __name__ == "__main__":
    main()
