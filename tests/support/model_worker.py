"""Programs that save a model, for processes that are killed or that save together.

python -m tests.support.model_worker loop FOLDER            # saves models 1, 2, 1, 2, ... until it is killed
python -m tests.support.model_worker together FOLDER --hosts.coordinator ...
"""

import argparse
import functools
import itertools
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from deberta_jax import DebertaForSequenceClassification, load_pretrained, make_mesh, save_pretrained
from deberta_jax.config import DebertaConfig
from deberta_jax.sharding import named_shardings

from .small_models import SMALL

IDS = np.ones((1, 4), np.int32)


def model(number: int) -> tuple[DebertaConfig, dict[str, Any]]:
    """Returns a model whose configuration and every array tell its number."""
    config = SMALL.replace(num_labels=number)
    shapes = jax.eval_shape(DebertaForSequenceClassification(config).init, jax.random.key(0), IDS)["params"]
    return config, jax.tree.map(lambda leaf: np.full(leaf.shape, number, np.float32), shapes)


def tokenizer(number: int) -> dict[str, bytes]:
    return {"spm.model": b"%d" % number, "tokenizer_config.json": b"{}"}


def number_of(folder: Path) -> int:
    """Returns the number of the model in a folder, whose configuration and arrays must all be of the same."""
    config, params = load_pretrained(folder)
    found = {float(value) for array in jax.tree.leaves(params) for value in (np.min(array), np.max(array))}
    assert found == {float(config.num_labels)}
    return config.num_labels


def loop(folder: Path, pause: float = 0) -> None:
    for number in itertools.cycle((1, 2)):
        save_pretrained(folder, *model(number), tokenizer=tokenizer(number))
        print(number, flush=True)
        time.sleep(pause)


def together(folder: Path) -> None:
    mesh = make_mesh(fsdp=4)
    for number in (1, 2):
        config, params = model(number)
        params = jax.tree.map(
            lambda x, sharding: jax.make_array_from_callback(x.shape, sharding, x.__getitem__),
            params,
            named_shardings(params, mesh),
        )
        save_pretrained(folder, config, params, tokenizer=tokenizer(number))
        loaded = load_pretrained(folder, mesh=mesh)
        assert loaded[0] == config
        for array in jax.tree.leaves(loaded[1]):
            assert all(np.all(np.asarray(shard.data) == number) for shard in array.addressable_shards)
    if jax.process_index() == 0:  # the folder of the next save cannot be created
        (folder.parent / "file").touch()
    multihost_utils.sync_global_devices("file")
    try:
        save_pretrained(folder.parent / "file" / "model", config, params)
    except OSError as error:
        print(f"refused: {error}", flush=True)


if __name__ == "__main__":
    program, folder = sys.argv[1:3]
    parser = argparse.ArgumentParser()
    for name in ("coordinator", "count", "index"):
        parser.add_argument(f"--hosts.{name}", dest=name)
    hosts = parser.parse_args(sys.argv[3:])
    if hosts.coordinator:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(hosts.coordinator, int(hosts.count), int(hosts.index))
    {"loop": loop, "slow_loop": functools.partial(loop, pause=2), "together": together}[program](Path(folder))
