"""The same fine-tuning by transformers in PyTorch and by `deberta-jax finetune`: loss curves, accuracies.

    python -m tests.benchmarks.finetune_parity [--steps 100] [--seeds 5] [--seed-steps 300] [--tasks single pair]

Two tasks on real text, the embedded novels: of which of three is a sentence (single), and which of two sentences is of
the first novel, the other one being of the second (pair). Both sides start from the same weights of a small DeBERTa-v3,
take the same batches in the same order, and train with AdamW, the same schedule and the same clipping.

Dropout off: every step's loss, and the final accuracy, side by side. Dropout on: accuracies over seeds, compared by
Welch's t-test. Exit status 1 where a loss differs by more than 1e-3 relative, the accuracies without dropout differ, or
the test says with p < 0.05 that those with dropout do.
"""

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from scipy import stats

from deberta_jax import DebertaForSequenceClassification, Tokenizer, load_pretrained, save_pretrained
from deberta_jax.train import finetune
from deberta_jax.train.configs import FinetuneConfig, OptimizerConfig
from deberta_jax.train.data import train_tokenizer as tokenizer
from deberta_jax.train.data.text import embedded_corpus, read_documents
from deberta_jax.train.demo import SMALL, novel_chapters
from deberta_jax.train.engine.optimizer import schedule
from deberta_jax.train.reporting.jsonl import read_records
from deberta_jax.train.tasks.batches import FinetuneBatches, evaluation_batches
from deberta_jax.train.tasks.loading import load_task

from ..support.configs import finetune_config
from .cpu_speed import torch_model

TRAINING, HELD_OUT, NOVELS = 4000, 500, 3  # training: at most
NARROW = SMALL.replace(
    vocab_size=2032,
    hidden_size=128,
    intermediate_size=256,
    attention_head_size=32,
    embedding_size=128,
    position_buckets=64,
    initializer_range=0.08,  # so narrow a model learns nothing from the usual 0.02
)


def write_data(folder: Path) -> None:
    """{single,pair}-{train,validation}.jsonl of three novels, text.txt of all and the tokenizer."""
    draw = np.random.default_rng(0)
    novels, texts = {}, []
    for novel in read_documents((embedded_corpus(),), boundary="blank_line"):
        title, chapters = novel_chapters(novel)
        text = re.sub(r"\s+", " ", " ".join(chapters))
        texts.append(text)
        novels[title] = [one for one in re.split(r"(?<=[.!?]) ", text) if 8 <= len(one.split()) <= 30]
    titles = list(novels)[:NOVELS]
    single = [{"text": one, "label": title} for title in titles for one in novels[title]]
    pair = []
    for one, other in zip(novels[titles[0]], novels[titles[1]], strict=False):
        first = bool(draw.integers(2))
        texts_of_pair = {"text": one, "pair": other} if first else {"text": other, "pair": one}
        pair.append(texts_of_pair | {"label": "first" if first else "second"})
    (folder / "text.txt").write_text("\n\n".join(texts), encoding="utf-8")
    for name, rows in (("single", single), ("pair", pair)):
        order = draw.permutation(len(rows))
        parts = {"validation": order[:HELD_OUT], "train": order[HELD_OUT : HELD_OUT + TRAINING]}
        for split, numbers in parts.items():
            lines = "".join(json.dumps(rows[number]) + "\n" for number in numbers)
            (folder / f"{name}-{split}.jsonl").write_text(lines, encoding="utf-8")
    tokenizer.main(tokenizer.TokenizerConfig(output=folder / "tokenizer", text=(folder / "text.txt",), vocab_size=2000))


def write_model(folder: Path, name: str, *, classes: int, dropout: float) -> Path:
    """A fresh model with its head, in a folder of its own."""
    config = NARROW.replace(
        num_labels=classes,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        pooler_dropout=0.0,
        cls_dropout=dropout,
    )
    model = DebertaForSequenceClassification(config)
    params = jax.jit(model.init)(jax.random.key(1), jnp.ones((1, 8), jnp.int32))["params"]
    path = folder / f"model-{name}-{dropout:g}"
    save_pretrained(path, config, params)
    Tokenizer.from_folder(folder / "tokenizer").save(path)
    return path


def settings(folder: Path, name: str, model: Path, *, steps: int, seed: int) -> FinetuneConfig:
    return finetune_config(
        output=folder / f"run-{model.name}-{seed}",
        model=model,
        train=str(folder / f"{name}-train.jsonl"),
        validation=str(folder / f"{name}-validation.jsonl"),
        pair_column="pair" if name == "pair" else None,
        max_length=64,
        batch_size=16,
        steps=steps,
        seed=seed,
        log_every=1,
        evaluate_every=steps,
        save_every=steps,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup=0.1, bias_correction=True),
    )


def ours(config: FinetuneConfig) -> tuple[list[float], float]:
    """The loss of every step, and the accuracy after the last one."""
    results = finetune.main(config)
    losses = [one["loss"] for one in read_records(config.output / "metrics.jsonl") if "loss" in one]
    return losses, results["validation"]["accuracy"]


def theirs(config: FinetuneConfig) -> tuple[list[float], float]:
    """The same, by transformers' model and PyTorch's AdamW."""
    torch.manual_seed(config.seed)
    task = load_task(config, Tokenizer.from_folder(config.model))
    model_config, params = load_pretrained(config.model)
    model = torch_model(model_config, params)
    spared = [one for name, one in model.named_parameters() if name.endswith("bias") or "LayerNorm" in name]
    decayed = [one for name, one in model.named_parameters() if not (name.endswith("bias") or "LayerNorm" in name)]
    given = config.optimizer
    adam = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": given.weight_decay}, {"params": spared, "weight_decay": 0.0}],
        lr=given.learning_rate,
        betas=(given.beta1, given.beta2),
        eps=given.epsilon,
    )
    steps = config.steps or 0
    multiplier = schedule(given, total_steps=steps)
    rates = [given.learning_rate * float(multiplier(number)) for number in range(steps)]
    batches = FinetuneBatches(
        task.splits["train"], batch_size=config.batch_size, max_length=config.data.max_length, seed=config.seed
    )
    losses = []
    model.train()
    for rate in rates:
        for group in adam.param_groups:
            group["lr"] = rate
        adam.zero_grad()
        loss = model(**as_torch(next(batches))).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), given.max_grad_norm)
        adam.step()
        losses.append(float(loss))
    model.eval()
    right = 0
    held_out = task.splits["validation"]
    for numbers, batch in evaluation_batches(held_out, batch_size=config.batch_size, max_length=config.data.max_length):
        with torch.no_grad():
            found = model(**as_torch(batch)).logits.argmax(-1).numpy()
        right += int((found == batch["labels"])[: len(numbers)].sum())
    return losses, right / len(held_out.lengths)


def as_torch(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(array, dtype=torch.long) for name, array in batch.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seed-steps", type=int, default=300)
    parser.add_argument("--tasks", nargs="+", choices=("single", "pair"), default=["single", "pair"])
    parser.add_argument("--output", type=Path, help="kept; default: a temporary folder")
    options = parser.parse_args()
    torch.set_num_threads(2)
    folder = options.output or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    write_data(folder)
    wrong = []
    lines = []
    for name in options.tasks:
        classes = {"single": NOVELS, "pair": 2}[name]
        model = write_model(folder, name, classes=classes, dropout=0.0)
        config = settings(folder, name, model, steps=options.steps, seed=0)
        (one, accuracy), (other, their_accuracy) = ours(config), theirs(config)
        apart = np.abs(np.array(one) - other) / np.abs(other)
        lines.append(
            f"{name}, dropout off, {options.steps} steps: loss {other[0]:.4f} to {other[-1]:.4f}, largest relative "
            f"difference {apart.max():.1e}; accuracy {accuracy:.4f} here, {their_accuracy:.4f} transformers"
        )
        if apart.max() > 1e-3 or accuracy != their_accuracy:
            wrong.append(f"{name}: without dropout the two differ")
        if options.seeds < 2:
            continue
        model = write_model(folder, name, classes=classes, dropout=0.1)
        found: dict[str, list[float]] = {"here": [], "transformers": []}
        for seed in range(options.seeds):
            config = settings(folder, name, model, steps=options.seed_steps, seed=seed)
            found["here"].append(ours(config)[1])
            found["transformers"].append(theirs(config)[1])
        p_value = float(stats.ttest_ind(found["here"], found["transformers"], equal_var=False).pvalue)  # pyright: ignore
        figures = [f"{side} {np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}" for side, values in found.items()]
        lines.append(
            f"{name}, dropout 0.1, {options.seed_steps} steps, {options.seeds} seeds: accuracy {', '.join(figures)}; "
            f"p = {p_value:.2f} (Welch)"
        )
        if not p_value >= 0.05:  # nan, too: all seeds alike tell nothing
            wrong.append(f"{name}: with dropout the accuracies differ")
    print("\n".join([*lines, *(f"WRONG: {one}" for one in wrong)]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
