"""Three steps of replaced token detection on a mesh: in the test's own process, or as one of several that share it.

As `cluster.cluster` starts it:

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

BATCH, LENGTH, SLOTS, STEPS = 8, 16, 4, 3


@dataclasses.dataclass
class Result:
    """metrics: of each step; params: by path, whole; moments, shards: global and local shapes of the moments."""

    metrics: list[dict[str, float]]
    params: dict[str, np.ndarray]
    moments: dict[str, tuple[int, ...]]
    shards: dict[str, tuple[int, ...]]


def run(mesh: dict[str, int], *, devices: list[Any], **changes: Any) -> Result:
    """Pre-trains the same tiny v3 models on the same batches, whatever the mesh; changes: of the run's settings."""
    from jax.experimental import multihost_utils

    from deberta_jax.rtd import RTDConfig, RTDModels
    from deberta_jax.sharding import local_rows, make_mesh, path_of, place_batch, shardings
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
    models_config = RTDConfig.half_depth(model)
    optimizers = pretrain.build_optimizers(config)
    create = functools.partial(pretrain.build_state, config, models_config, optimizers, {})
    laid = make_mesh(**mesh, devices=devices)
    placement = shardings(jax.eval_shape(create), laid)
    step = jax.jit(
        pretrain.build_step(
            RTDModels.build(models_config), optimizers, config, sharing=models_config.embedding_sharing
        ),
        donate_argnums=0,
        out_shardings=(placement, None),
    )
    metrics = []
    with jax.set_mesh(laid):
        state = jax.jit(create, out_shardings=placement)()
        for number in range(STEPS):
            rows = local_rows(laid, BATCH)
            batch = {name: values[rows] for name, values in example(number).items()}
            state, found = step(state, place_batch(batch, laid))
            metrics.append({name: float(value) for name, value in jax.device_get(found).items()})
    assert step._cache_size() == 1, "the step was compiled more than once"
    moments = {path_of(path): leaf for path, leaf in jax.tree.leaves_with_path(state.opt_state) if leaf.ndim}
    gathered = multihost_utils.process_allgather(state.params, tiled=True)
    return Result(
        metrics,
        {path_of(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(gathered)},
        {path: leaf.shape for path, leaf in moments.items()},
        {path: leaf.addressable_shards[0].data.shape for path, leaf in moments.items()},
    )


def example(number: int) -> dict[str, np.ndarray]:
    """A whole batch of packed rows with padding, as `pretrain` reads it."""
    random = np.random.default_rng(number)
    ids = random.integers(5, 64, (BATCH, LENGTH), dtype=np.int32)
    segments = np.repeat([[1, 2]], LENGTH // 2, axis=1).repeat(BATCH, axis=0).astype(np.int32)
    segments[:, LENGTH - 2 :] = 0
    positions = np.sort(random.permuted(np.tile(np.arange(LENGTH - 2), (BATCH, 1)), axis=1)[:, :SLOTS], axis=1)
    labels = np.take_along_axis(ids, positions, axis=1)
    labels[::3, -1] = 0  # slots that are not used
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
    jax.distributed.initialize(options.coordinator, options.count, options.index, initialization_timeout=60)
    result = run(settings["mesh"], devices=jax.devices())
    if options.index == 0:
        output = Path(settings["output"])
        np.savez(output / "params.npz", **result.params)
        figures = {"metrics": result.metrics, "moments": result.moments, "shards": result.shards}
        (output / "figures.json").write_text(json.dumps(figures))
    jax.distributed.shutdown()


if __name__ == "__main__":
    main()
