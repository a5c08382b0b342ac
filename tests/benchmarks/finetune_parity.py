"""Compares fine-tuning by `deberta-jax finetune` with transformers in PyTorch: loss curves and accuracies.

    python -m tests.benchmarks.finetune_parity [--steps 100] [--seeds 5] [--seed-steps 300] [--tasks single pair]

There are two tasks on real text, the embedded novels. In `single`, a sentence is classified by the novel it comes from,
out of three. In `pair`, the model decides which of two sentences comes from the first novel; the other one comes from
the second. Both sides start from the same weights of a small DeBERTa-v3, take the same batches in the same order, and
train with AdamW, the same schedule and the same clipping.

Without dropout, the loss of every step and the final accuracies are compared. With dropout, accuracies over several
seeds are compared by Welch's t-test. The exit status is 1 if a loss differs by more than 1e-3 relative, the accuracies
without dropout differ, or those with dropout differ with p < 0.05.
"""

import argparse
import contextlib
import dataclasses
import json
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Int
from scipy import stats

from deberta_jax import DebertaConfig, DebertaForSequenceClassification, Tokenizer, load_pretrained, save_pretrained
from deberta_jax.train import finetune
from deberta_jax.train.configs import FinetuneConfig, OptimizerConfig
from deberta_jax.train.data import train_tokenizer as tokenizer
from deberta_jax.train.data.text import embedded_corpus, read_documents
from deberta_jax.train.demo_texts import novel_chapters
from deberta_jax.train.engine.optimizer import schedule
from deberta_jax.train.reporting.jsonl import read_records
from deberta_jax.train.tasks.batches import FinetuneBatches, evaluation_batches
from deberta_jax.train.tasks.loading import load_task

from ..support.configs import finetune_config
from .cpu_speed import torch_model

MAX_TRAINING, HELD_OUT, NOVELS = 4000, 500, 3  # examples, examples, classes of `single`
CLASSES = {"single": NOVELS, "pair": 2}
NARROW = DebertaConfig(
    vocab_size=2032,
    hidden_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=256,
    relative_attention=True,
    position_biased_input=False,
    pos_att_type=("c2p", "p2c"),
    norm_rel_ebd="layer_norm",
    share_att_key=True,
    attention_head_size=32,
    embedding_size=128,
    position_buckets=64,
    initializer_range=0.08,  # from the usual 0.02, a model this narrow does not learn
)


def write_data(folder: Path) -> None:
    """Writes {single,pair}-{train,validation}.jsonl of three novels, text.txt of all novels, and the tokenizer."""
    random = np.random.default_rng(0)
    novels, texts = {}, []
    for novel in read_documents((embedded_corpus(),), boundary="blank_line"):
        title, chapters = novel_chapters(novel)
        text = re.sub(r"\s+", " ", " ".join(chapters))
        texts.append(text)
        sentences = re.split(r"(?<=[.!?]) ", text)
        novels[title] = [sentence for sentence in sentences if 8 <= len(sentence.split()) <= 30]
    titles = list(novels)[:NOVELS]
    single = [{"text": sentence, "label": title} for title in titles for sentence in novels[title]]
    pair = []
    for sentence, other in zip(novels[titles[0]], novels[titles[1]], strict=False):
        is_first = bool(random.integers(2))
        texts_of_pair = {"text": sentence, "pair": other} if is_first else {"text": other, "pair": sentence}
        pair.append(texts_of_pair | {"label": "first" if is_first else "second"})
    (folder / "text.txt").write_text("\n\n".join(texts), encoding="utf-8")
    for name, rows in (("single", single), ("pair", pair)):
        order = random.permutation(len(rows))
        parts = {"validation": order[:HELD_OUT], "train": order[HELD_OUT : HELD_OUT + MAX_TRAINING]}
        for split, indices in parts.items():
            lines = "".join(json.dumps(rows[index]) + "\n" for index in indices)
            (folder / f"{name}-{split}.jsonl").write_text(lines, encoding="utf-8")
    tokenizer.main(tokenizer.TokenizerConfig(output=folder / "tokenizer", text=(folder / "text.txt",), vocab_size=2000))


def write_model(folder: Path, name: str, *, classes: int, dropout: float) -> Path:
    """Writes a freshly initialized classifier and its tokenizer, and returns their folder."""
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


def build_config(folder: Path, name: str, model: Path, *, steps: int, seed: int) -> FinetuneConfig:
    """Returns the settings of a run, which both sides use."""
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


@dataclasses.dataclass(frozen=True)
class Result:
    """The loss of every step, and the validation accuracy after the last one."""

    losses: list[float]
    accuracy: float


def train_with_library(config: FinetuneConfig) -> Result:
    """Fine-tunes with `deberta-jax finetune`."""
    results = finetune.main(config)
    losses = [record["loss"] for record in read_records(config.output / "metrics.jsonl") if "loss" in record]
    return Result(losses, results["validation"]["accuracy"])


def train_with_torch(config: FinetuneConfig) -> Result:
    """Fine-tunes the model of transformers with PyTorch's AdamW."""
    torch.manual_seed(config.seed)
    task = load_task(config, Tokenizer.from_folder(config.model))
    model_config, params = load_pretrained(config.model)
    model = torch_model(model_config, params)
    decayed, not_decayed = [], []
    for name, parameter in model.named_parameters():
        (not_decayed if name.endswith("bias") or "LayerNorm" in name else decayed).append(parameter)
    settings = config.optimizer
    adam = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": not_decayed, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
    )
    steps = config.steps or 0
    multiplier = schedule(settings, total_steps=steps)
    rates = [settings.learning_rate * float(multiplier(step)) for step in range(steps)]
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
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        adam.step()
        losses.append(float(loss))
    model.eval()
    correct = 0
    held_out = task.splits["validation"]
    for indices, batch in evaluation_batches(held_out, batch_size=config.batch_size, max_length=config.data.max_length):
        with torch.no_grad():
            predictions = model(**as_torch(batch)).logits.argmax(-1).numpy()
        correct += int((predictions == batch["labels"])[: len(indices)].sum())  # the last batch is padded with rows
    return Result(losses, correct / len(held_out.lengths))


def as_torch(batch: Mapping[str, Int[np.ndarray, "B ..."]]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(array, dtype=torch.long) for name, array in batch.items()}


def compare_losses(folder: Path, name: str, *, steps: int) -> tuple[str, bool]:
    """Trains both sides without dropout. Returns a line of text, and whether they differ."""
    model = write_model(folder, name, classes=CLASSES[name], dropout=0.0)
    config = build_config(folder, name, model, steps=steps, seed=0)
    library, peer = train_with_library(config), train_with_torch(config)
    largest = (np.abs(np.array(library.losses) - peer.losses) / np.abs(peer.losses)).max()
    line = (
        f"{name}, dropout off, {steps} steps: loss {peer.losses[0]:.4f} to {peer.losses[-1]:.4f}, largest relative "
        f"difference {largest:.1e}; accuracy {library.accuracy:.4f} here, {peer.accuracy:.4f} transformers"
    )
    return line, bool(largest > 1e-3) or library.accuracy != peer.accuracy


def compare_accuracies(folder: Path, name: str, *, steps: int, seeds: int) -> tuple[str, bool]:
    """Trains both sides with dropout and several seeds. Returns a line of text, and whether they differ."""
    model = write_model(folder, name, classes=CLASSES[name], dropout=0.1)
    accuracies: dict[str, list[float]] = {"here": [], "transformers": []}
    for seed in range(seeds):
        config = build_config(folder, name, model, steps=steps, seed=seed)
        accuracies["here"].append(train_with_library(config).accuracy)
        accuracies["transformers"].append(train_with_torch(config).accuracy)
    test: Any = stats.ttest_ind(accuracies["here"], accuracies["transformers"], equal_var=False)
    figures = [f"{side} {np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}" for side, values in accuracies.items()]
    line = (
        f"{name}, dropout 0.1, {steps} steps, {seeds} seeds: accuracy {', '.join(figures)}; "
        f"p = {float(test.pvalue):.2f} (Welch)"
    )
    return line, not test.pvalue >= 0.05  # NaN counts as different: equal accuracies for all seeds prove nothing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seed-steps", type=int, default=300)
    parser.add_argument("--tasks", nargs="+", choices=CLASSES, default=list(CLASSES))
    parser.add_argument("--output", type=Path, help="folder for data and runs (default: a temporary folder)")
    options = parser.parse_args()
    torch.set_num_threads(2)
    folder = options.output or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    reports = []
    with contextlib.redirect_stdout(sys.stderr):  # `make compare` keeps what is on standard output
        write_data(folder)
        for name in options.tasks:
            reports.append(compare_losses(folder, name, steps=options.steps))
            if options.seeds > 1:
                reports.append(compare_accuracies(folder, name, steps=options.seed_steps, seeds=options.seeds))
    lines = [line for line, _ in reports]
    differences = [f"DIFFERENT: {line}" for line, differs in reports if differs]
    print("\n".join([*lines, *differences]))
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
