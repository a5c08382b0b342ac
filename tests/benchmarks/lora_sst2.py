"""Compares LoRA with full fine-tuning on SST-2, at equal steps and from the same start.

    python -m tests.benchmarks.lora_sst2 TRAIN.tsv DEV.tsv [--seeds 3] [--steps 300] [--start-steps 600] [--output F]

There are no published weights in this repository, so the start is made here, from the two files of GLUE alone: a
tokenizer, and a small model that is trained from random weights on the first half of the training file. It stands for a
model that knows the domain. Both methods then adapt it to the second half, with a new head, and are measured on the
development file. With few `--start-steps` the frozen encoder holds little that LoRA can use, which shows how much the
method depends on its start. Each method has its own learning rate, the best of a grid of three for seed 0.

The table has the accuracy of every seed, the bytes of the optimizer's state, the memory of the compiled step
(arguments and temporaries, as XLA states them), and the bytes that have to be kept for the task. Accuracy does not
depend on the load of the machine. The same command resumes a run that was stopped.
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

from deberta_jax import Deberta, DebertaConfig, Tokenizer, load_pretrained, save_pretrained
from deberta_jax.lora import LoraConfig
from deberta_jax.train import finetune
from deberta_jax.train.configs import FinetuneConfig, OptimizerConfig
from deberta_jax.train.data import train_tokenizer
from deberta_jax.train.tasks.classification.task import Classification
from deberta_jax.train.tuning import choose_tuning
from tests.support.configs import changed, finetune_config

BATCH = 64
LORA = LoraConfig(rank=8, alpha=16.0, targets=("query_proj", "key_proj", "value_proj", "attention/output"))
METHODS = {"full": (LoraConfig(), (1e-4, 3e-4, 1e-3)), "LoRA": (LORA, (3e-4, 1e-3, 3e-3))}
CONFIG = DebertaConfig(
    vocab_size=6016,
    hidden_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=256,
    max_position_embeddings=64,
    relative_attention=True,
    position_buckets=16,
    norm_rel_ebd="layer_norm",
    share_att_key=True,
    pos_att_type="c2p|p2c",
    position_biased_input=False,
)


class Files(NamedTuple):
    """The two halves of the training examples, and the development examples."""

    first: Path
    second: Path
    dev: Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("dev", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--start-steps", type=int, default=600)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    folder = options.output or Path(tempfile.mkdtemp())
    files = split(options.train, options.dev, folder)
    start = make_start(options, files, folder)
    rows = []
    for name, (lora, rates) in METHODS.items():
        runs = start.parent / name.lower()

        def accuracy(rate: float, seed: int, lora: LoraConfig = lora, runs: Path = runs) -> float:
            config = settings(options, start, files, runs / f"{rate:g}-{seed}", rate, seed=seed, lora=lora)
            return finetune.main(config)["validation"]["accuracy"]

        tried = {rate: accuracy(rate, 0) for rate in rates}
        best = max(tried, key=tried.__getitem__)
        values = [tried[best], *(accuracy(best, seed) for seed in range(1, options.seeds))]
        rows.append((name, best, values, memory(settings(options, start, files, folder, best, lora=lora))))
    print(f"\nstart: {start}; {options.steps} steps of {BATCH} examples, {options.seeds} seeds; {LORA}")
    for name, best, values, figures in rows:
        print(
            f"{name:5} rate {best:g}  accuracy {100 * statistics.mean(values):.1f}  "
            f"({', '.join(f'{100 * value:.1f}' for value in values)})  {figures}"
        )
    full, lora = (statistics.mean(row[2]) for row in rows)
    print(f"LoRA minus full: {100 * (lora - full):+.1f} points")


def split(train: Path, dev: Path, folder: Path) -> Files:
    """Writes the two halves of the training file, after a shuffle, and the phrases as documents of forty lines."""
    folder.mkdir(parents=True, exist_ok=True)
    header, *rows = train.read_text(encoding="utf-8").rstrip("\n").split("\n")
    order = np.random.default_rng(0).permutation(len(rows))
    files = Files(folder / "first.tsv", folder / "second.tsv", dev)
    for path, part in ((files.first, order[::2]), (files.second, order[1::2])):
        path.write_text("\n".join([header, *(rows[index] for index in part)]) + "\n", encoding="utf-8")
    phrases = [row.split("\t")[0].strip() for row in rows]
    blocks = ["\n".join(phrases[begin : begin + 40]) for begin in range(0, len(phrases), 40)]
    (folder / "phrases.txt").write_text("\n\n".join(blocks), encoding="utf-8")
    return files


def make_start(options: argparse.Namespace, files: Files, folder: Path) -> Path:
    """Trains a tokenizer, and a model from random weights on the first half, and returns it without its head."""
    home = folder / f"start-{options.start_steps}"
    tokenizer, random, start = folder / "tokenizer", folder / "random", home / "model"
    if not random.exists():
        train_tokenizer.main(
            train_tokenizer.TokenizerConfig(text=(folder / "phrases.txt",), output=tokenizer, vocab_size=6000)
        )
        Tokenizer.from_folder(tokenizer).save(random)
        ids = np.ones((1, 8), np.int32)
        save_pretrained(random, CONFIG, {"deberta": jax.jit(Deberta(CONFIG).init)(jax.random.key(0), ids)["params"]})
    if not start.exists():
        whole = settings(options, random, files, home / "first", 1e-3, steps=options.start_steps)
        finetune.main(changed(whole, train=str(files.first)))
        config, params = load_pretrained(home / "first" / "model")
        Tokenizer.from_folder(tokenizer).save(start)
        save_pretrained(start, config, {"deberta": params["deberta"]})
    return start


def settings(
    options: argparse.Namespace, model: Path, files: Files, output: Path, rate: float, **others: Any
) -> FinetuneConfig:
    """Returns the settings of a run on the second half. `others` replace or add some."""
    shared = {
        "model": model,
        "output": output,
        "train": str(files.second),
        "validation": str(files.dev),
        "max_length": options.max_length,
        "batch_size": BATCH,
        "steps": options.steps,
        "evaluate_every": options.start_steps + options.steps,  # at the end
        "save_every": 0,
        "log_every": 100,
        "optimizer": OptimizerConfig(learning_rate=rate),
    }
    return finetune_config(**{**shared, **others})


def memory(config: FinetuneConfig) -> str:
    """Returns the bytes of the optimizer's state, of the compiled step, and of what is kept for the task."""
    base, weights = load_pretrained(config.model)
    model = Classification().model(base, dtype=np.float32, remat=False)
    ids = np.ones((BATCH, config.data.max_length), np.int32)
    tuning = choose_tuning(config, model, base, weights, ids)
    optimizer = finetune.build_layerwise_optimizer(config, total_steps=1000, layers=base.num_hidden_layers)
    state = jax.jit(
        lambda weights: finetune.build_state(model, optimizer, ids, weights, seed=0, adapted=tuning.adapted)
    )(weights)
    step = finetune.build_step(tuning.model, Classification(), optimizer, config, total_steps=1000)
    batch = {"input_ids": ids, "attention_mask": ids, "token_type_ids": 0 * ids, "labels": ids[:, 0]}
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch, tuning.frozen).compile()
    analysis = compiled.memory_analysis()
    peak = (analysis.temp_size_in_bytes + analysis.argument_size_in_bytes) / 2**20
    moments, kept = (
        sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) / 2**20 for tree in (state.opt_state, state.params)
    )
    return f"optimizer {moments:.2f} MiB  step {peak:.1f} MiB  kept {kept:.2f} MiB"


if __name__ == "__main__":
    main()
