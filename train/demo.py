"""The whole library in small: six novels, a tokenizer, pre-training, and a classifier that names a passage's novel.

    deberta-jax demo --output runs/demo        (or: make demo)

A DeBERTa-v3 of 4 layers of width 256 is pre-trained by replaced token detection with gradient-disentangled embedding
sharing, and then fine-tuned. It is compared with the same model from random weights and with logistic regression on
TF-IDF. All three are evaluated on the same passages, from chapters that none of them has seen before, not even in
pre-training.
"""

import dataclasses
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from rich.table import Table

from deberta_jax.atomic_files import write_file
from deberta_jax.config import DebertaConfig
from deberta_jax.console import PlainConsole
from deberta_jax.strict_json import to_json

from . import finetune, pretrain
from .configs import (
    FinetuneConfig,
    ModelsConfig,
    OptimizerConfig,
    PretrainConfig,
    SelectionConfig,
    TaskDataConfig,
    TextConfig,
)
from .data import train_tokenizer as tokenizer
from .data.text import embedded_corpus, is_heading, read_documents
from .settings import Positive, Seed, Settings

PASSAGE_WORDS = 80
SPLITS = ("train", "validation", "test")

SMALL = DebertaConfig(
    vocab_size=4032,
    hidden_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=512,
    relative_attention=True,
    position_biased_input=False,
    pos_att_type=("c2p", "p2c"),
    position_buckets=256,
    norm_rel_ebd="layer_norm",
    share_att_key=True,
    initializer_range=0.05,  # 0.02 is meant for widths of 384 and more; with it random weights learn nothing here
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoConfig(Settings):
    """Train a classifier from six novels, in about 7 minutes on two cores. Repeat the same command to resume it."""

    EXAMPLES: ClassVar[tuple[str, ...]] = ("--output runs/demo",)

    output: Path = Path("runs/demo")
    """folder for all files of the demo"""
    pretrain_steps: Positive = 2400
    """number of steps of pre-training"""
    finetune_steps: Positive = 200
    """number of steps of each fine-tuning"""
    seed: Seed = 0
    """seed of all runs"""


def main(config: DemoConfig) -> None:
    """Runs all steps, prints a table of results and writes results.json."""
    console, started = PlainConsole(), time.monotonic()
    folder = config.output
    folder.mkdir(parents=True, exist_ok=True)

    console.rule("1 of 5: text, split by chapter")
    counts = write_passages(folder)
    for split in SPLITS:
        console.print(f"{split:10} {counts[split]:5} passages of about {PASSAGE_WORDS} words")

    console.rule("2 of 5: tokenizer")
    tokenizer.main(
        tokenizer.TokenizerConfig(output=folder / "tokenizer", text=(folder / "pretraining.txt",), vocab_size=4000)
    )

    console.rule("3 of 5: pre-training (RTD, GDES)")
    write_file(folder / "model.json", to_json(SMALL.to_json(), indent=2))
    pretrain.main(
        PretrainConfig(
            output=folder / "pretraining",
            tokenizer=folder / "tokenizer",
            data=TextConfig(text=(folder / "pretraining.txt",), sequence_length=128),
            models=ModelsConfig(model=str(folder / "model.json")),
            batch_size=4,  # for a model of this size more updates help more than larger batches
            steps=config.pretrain_steps,
            optimizer=OptimizerConfig(learning_rate=1e-3, warmup=0.1, beta2=0.98),
            # With the generator's rate the discriminator collapses at first: it maps all tokens to one vector.
            discriminator_learning_rate=3e-4,
            evaluate_every=max(1, config.pretrain_steps // 4),
            save_every=400,
            log_every=20,
            seed=config.seed,
        )
    )

    results = {}
    for number, random_weights in ((4, False), (5, True)):
        name = "random weights" if random_weights else "pre-trained"
        console.rule(f"{number} of 5: fine-tuning from {'random' if random_weights else 'pre-trained'} weights")
        results[name] = finetune.main(
            FinetuneConfig(
                output=folder / ("finetuning-random" if random_weights else "finetuning"),
                model=folder / "pretraining" / "discriminator",
                random_weights=random_weights,
                data=TaskDataConfig(
                    train=str(folder / "train.jsonl"),
                    validation=str(folder / "validation.jsonl"),
                    test=str(folder / "test.jsonl"),
                    max_length=128,
                ),
                batch_size=16,
                steps=config.finetune_steps,
                optimizer=OptimizerConfig(learning_rate=5e-4, warmup=0.1, beta2=0.98),
                selection=SelectionConfig(evaluate_every=config.finetune_steps),
                seed=config.seed,
            )
        )["test"]
    results["TF-IDF"] = tfidf_baseline(folder)

    console.rule("which novel is it from?")
    table = Table("model", "accuracy", "macro F1")
    rows = {
        "pre-trained": f"DeBERTa, pre-trained {config.pretrain_steps} steps, fine-tuned {config.finetune_steps}",
        "random weights": f"DeBERTa, random weights, fine-tuned {config.finetune_steps}",
        "TF-IDF": "TF-IDF + logistic regression",
    }
    for name, label in rows.items():
        table.add_row(label, f"{results[name]['accuracy']:.4f}", f"{results[name]['macro_f1']:.4f}")
    console.print(table)
    write_file(folder / "results.json", to_json(results, indent=2) + "\n")
    console.print(f"{counts['test']} test passages. Curves of pre-training: {folder / 'pretraining' / 'curves.png'}")
    console.print(f"{(time.monotonic() - started) / 60:.1f} minutes.")


def write_passages(folder: Path) -> dict[str, int]:
    """Writes {train,validation,test}.jsonl with text and label, and pretraining.txt without the test chapters.

    Splits consist of whole chapters, so that no passage has a neighbor in another split: of every ten chapters of a
    novel two are for testing and one for validation.

    Returns:
      The number of passages of each split.
    """
    passages: dict[str, list[dict[str, str]]] = {split: [] for split in SPLITS}
    pretraining = []
    for novel in read_documents((embedded_corpus(),), boundary="blank_line"):
        title, chapters = novel_chapters(novel)
        for number, text in enumerate(chapters):
            split = {4: "test", 9: "test", 2: "validation"}.get(number % 10, "train")
            passages[split] += [{"text": passage, "label": title} for passage in cut_passages(text)]
            if split != "test":
                pretraining.append(text)
    for split, examples in passages.items():
        lines = "".join(to_json(example) + "\n" for example in examples)
        write_file(folder / f"{split}.jsonl", lines)
    # Written only if it differs, because the prepared corpus is tied to the file.
    target, text = folder / "pretraining.txt", "\n\n".join(pretraining) + "\n"
    if not target.exists() or target.read_text(encoding="utf-8") != text:
        write_file(target, text)
    return {split: len(examples) for split, examples in passages.items()}


def novel_chapters(novel: str) -> tuple[str, list[str]]:
    """Returns the title of a novel, which is its first line, and its chapters without headings and front matter."""
    lines = novel.splitlines()
    chapters: list[list[str]] = []
    for line in lines:
        if is_heading(line):
            chapters.append([])
        elif chapters:
            chapters[-1].append(line)
    return lines[0].strip().title(), ["\n".join(chapter) for chapter in chapters if chapter]


def cut_passages(text: str) -> Iterator[str]:
    """Yields passages of PASSAGE_WORDS words; fewer than half of that at the end are added to the last passage."""
    words = re.split(r"\s+", text.strip())
    starts = list(range(0, len(words), PASSAGE_WORDS))
    if len(starts) > 1 and len(words) - starts[-1] < PASSAGE_WORDS // 2:
        starts.pop()
    for start, end in zip(starts, [*starts[1:], len(words)], strict=True):
        yield " ".join(words[start:end])


def tfidf_baseline(folder: Path) -> dict[str, float]:
    """Returns accuracy and macro F1, on the test passages, of logistic regression on TF-IDF of words and word pairs."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, f1_score
    from sklearn.pipeline import make_pipeline

    def read(split: str) -> tuple[list[str], list[str]]:
        examples = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        return [example["text"] for example in examples], [example["label"] for example in examples]

    texts, labels = read("train")
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(max_iter=1000))
    model.fit(texts, labels)
    texts, labels = read("test")
    predictions = model.predict(texts)
    return {"accuracy": accuracy_score(labels, predictions), "macro_f1": f1_score(labels, predictions, average="macro")}
