"""Makes the files of the model "deberta-v3-tiny" in the package from a finished run of `deberta-jax pretrain`.

    python -m tests.support.embed_tiny RUN --hardware "two CPU cores" [--note TEXT] [--scores FILE] [--output FOLDER]

RUN has the folders generator/ and discriminator/, and the files in which it recorded its settings, metrics and time.
Its --corpus is found from the current folder, or beside RUN. --scores is the `results.md` of
`python -m tests.benchmarks.glue`, whose table goes into the model card. --note says what no file of the run records,
such as where its initial weights come from. The same folders give the same bytes.

The parameters are rounded to bfloat16. The configurations get the dropout of the released models, 0.1, whatever the run
trained with: it is what fine-tuning expects.
"""

import argparse
import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from flax import traverse_util

from deberta_jax import DebertaConfig, Tokenizer, load_pretrained
from deberta_jax.config_file import FILE as SETTINGS
from deberta_jax.config_file import read_settings
from deberta_jax.convert.run_record import RunRecord, read_record
from deberta_jax.embedded import EMBEDDED, PACKED_FILE, package_folder
from deberta_jax.errors import MissingFileError, UserError
from deberta_jax.file_digests import DIGESTS_FILE, file_digests, format_digests
from deberta_jax.option_list import options_of
from deberta_jax.terminal import say
from deberta_jax.train.configs import PretrainConfig
from deberta_jax.train.reporting.curves import plot_curves
from deberta_jax.train.reporting.goodput import read_goodput
from deberta_jax.train.reporting.jsonl import read_records

NAME = EMBEDDED[0]
MODELS = ("discriminator", "generator")
LARGEST = 20_000_000  # bytes of all files; PyPI and git keep every version
DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}


def embed(run: Path, output: Path, *, hardware: str, note: str, scores: Path | None) -> int:
    """Writes the files of the model and returns their size in bytes.

    Raises:
      UserError: The run has not finished, a file of it is damaged, or the files are larger than LARGEST.
    """
    for name in MODELS:
        if not (run / name).is_dir():
            raise MissingFileError(f"{run} has no {name}/; give the folder of a finished run of `deberta-jax pretrain`")
    shutil.rmtree(output / "__pycache__", ignore_errors=True)
    counts = {name: write_model(run / name, output / name) for name in MODELS}
    plot_curves(run / "metrics.jsonl", output / "curves.png")
    text = card(run, counts, hardware=hardware, note=note, scores=scores)
    (output / "README.md").write_text(text, encoding="utf-8")
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    if size > LARGEST:
        raise UserError(f"the files in {output} have {size:,} bytes, more than {LARGEST:,}; train a smaller model")
    return size


def write_model(source: Path, folder: Path) -> int:
    """Writes one of the two models and returns its number of parameters."""
    config, params = load_pretrained(source)
    arrays: dict[str, Any] = {
        path: np.asarray(array).astype(ml_dtypes.bfloat16).view(np.uint16)  # NumPy's files have no bfloat16
        for path, array in sorted(traverse_util.flatten_dict(params, sep="/").items())
    }
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    np.savez_compressed(folder / PACKED_FILE, **arrays)
    (folder / "config.json").write_text(config_text(config), encoding="utf-8")
    for name, content in Tokenizer.from_folder(source).files().items():
        (folder / name).write_bytes(content)
    digests = file_digests(folder, [path.name for path in folder.iterdir()])
    (folder / DIGESTS_FILE).write_text(format_digests(digests), encoding="utf-8")
    return sum(array.size for array in arrays.values())


def config_text(config: DebertaConfig) -> str:
    return json.dumps(config.replace(**DROPOUT).to_json(), indent=2) + "\n"


# ---------------------------------------------------------------------------------------------------- model card


def card(run: Path, counts: dict[str, int], *, hardware: str, note: str, scores: Path | None) -> str:
    """Returns the model card, with numbers from what the run recorded."""
    record, settings = read_record(run), read_settings(run / SETTINGS, PretrainConfig, default=None, command="pretrain")
    evaluation = last_evaluation(run)
    manifest = read_manifest(run, settings)
    train, held_out = manifest["train"], manifest["held_out"]
    seen = settings.steps * settings.batch_size * settings.data.sequence_length
    models = {name: load_pretrained(run / name)[0] for name in MODELS}
    sources = ", ".join(f"{source['name']} ({source['bytes'] / 1e6:,.1f} MB)" for source in manifest["sources"])
    return CARD.format(
        name=NAME,
        dropout=models["discriminator"].hidden_dropout_prob,
        parts="\n".join(f"| {describe(name, models[name], counts[name])} |" for name in MODELS),
        vocabulary=f"{Tokenizer.from_folder(run / 'generator').vocab_size:,}",
        sources=sources,
        documents=f"{train['documents']:,}",
        tokens=f"{train['tokens']:,}",
        held_out=f"{held_out['tokens']:,}",
        command=command(settings),
        steps=f"{settings.steps:,}",
        seen=f"{seen / 1e6:,.1f}",
        epochs=f"{settings.steps * settings.batch_size / train['rows']:.2f}",
        hours=f"{read_goodput(run).total / 3600:.1f}",
        hardware=hardware,
        note=f"\n{note}\n" if note else "",
        versions=versions(record),
        evaluation="\n".join(f"| {label} | {show(evaluation.get(key), form)} |" for key, label, form in EVALUATION),
        evaluated=f"{evaluation['step']:,}",
        scores=score_text(scores),
    )


def last_evaluation(run: Path) -> dict[str, Any]:
    """Returns the newest record of the run's metrics that has figures of the held-out text."""
    records = [record for record in read_records(run / "metrics.jsonl") if "eval/generator_loss" in record]
    if not records:
        raise UserError(f"{run / 'metrics.jsonl'} has no evaluation; train with --evaluate-every above 0")
    return records[-1]


def read_manifest(run: Path, settings: PretrainConfig) -> dict[str, Any]:
    """Returns the manifest of the corpus of a run."""
    corpus = Path(settings.data.corpus[0]) if settings.data.corpus else run / "corpus"
    paths = (corpus / "manifest.json", run.parent / corpus / "manifest.json")
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise MissingFileError(f"there is no {paths[0]} and no {paths[1]}; run this where the run was started")
    return json.loads(path.read_text(encoding="utf-8"))


def describe(name: str, config: DebertaConfig, count: int) -> str:
    layers, width, heads = config.num_hidden_layers, config.hidden_size, config.num_attention_heads
    return f"{name} | {layers} | {width} | {heads} | {config.intermediate_size} | {count / 1e6:.2f} M"


def command(settings: PretrainConfig) -> str:
    """Returns the command line of a run, with the options that differ from their defaults."""
    defaults = {option.name: option.default for option in options_of(PretrainConfig)}
    words = ["deberta-jax", "pretrain"]
    for option in options_of(PretrainConfig, settings):
        if option.default != defaults[option.name]:
            value = option.default if isinstance(option.default, tuple) else (option.default,)
            words += [f"--{option.name}", *map(word, value)]
    return shlex.join(words).replace(" --", " \\\n    --")


def word(value: Any) -> str:
    """Returns a value of the command line; of an absolute path its last two parts, which mean something elsewhere."""
    if isinstance(value, Path) and value.is_absolute():
        return str(Path(*value.parts[-2:]))
    return f"{value:g}" if isinstance(value, float) else str(value)


def versions(record: RunRecord) -> str:
    return ", ".join(f"{library} {version}" for library, version in record.versions.items())


def show(value: float | None, form: str) -> str:
    return "none predicted" if value is None else format(value, form)


def score_text(file: Path | None) -> str:
    """Returns the results of fine-tuning, and what they are."""
    if file is None:
        return "Not measured yet."
    return f"{SCORED}\n\n{file.read_text(encoding='utf-8').strip()}"


EVALUATION = (
    ("eval/generator_loss", "generator: loss per masked token, nats", ".3f"),
    ("eval/masked_accuracy", "generator: masked tokens predicted", ".1%"),
    ("eval/discriminator_loss", "discriminator: loss per token, nats", ".3f"),
    ("eval/rtd_accuracy", "discriminator: tokens judged correctly", ".1%"),
    ("eval/replaced_precision", "discriminator: precision of replaced tokens", ".1%"),
    ("eval/replaced_recall", "discriminator: recall of replaced tokens", ".1%"),
)
SCORED = """\
`python -m tests.benchmarks.glue`: mean and standard deviation over seeds, in percent, of the official development sets.
Random weights were trained with the same examples and steps. TF-IDF with logistic regression is the best of twelve
settings on the development set."""
CARD = """\
---
license: mit
language: en
library_name: deberta-jax
---

# {name}

A small DeBERTa-v3 for English that was pre-trained with this library: replaced token detection (RTD) with
gradient-disentangled embedding sharing (GDES). It is part of the package, so that examples, tests and first experiments
run without a network. It is far too small, and has seen far too little text, to compete with the released models.

| model | layers | width | heads | feed-forward | parameters |
|---|---|---|---|---|---|
{parts}

`{name}` is the discriminator, which is the model to fine-tune. `{name}/generator` predicts masked
tokens. The vocabulary is cased and has {vocabulary} pieces (SentencePiece). The weights are stored as bfloat16 and
loaded as float32.

```python
from deberta_jax import Predictor, Tokenizer, load_pretrained

config, params = load_pretrained("{name}")
tokenizer = Tokenizer.from_folder("{name}")
Predictor.load("{name}/generator").fill_mask(["She opened the [MASK] and went in."])
```

## Data

Books in English that are in the public domain: {sources}, {documents} documents, {tokens} tokens for
training and {held_out} held out. Such books are old, and the model repeats their views and their words. The text itself
is not part of the package.

## Training

```
{command}
```

{steps} steps, {seen} M tokens with special tokens and padding, {epochs} epochs, {hours} hours on {hardware}.
`model.json` has the configurations of the two folders. The run had a dropout of {dropout:g}; for fine-tuning it is 0.1.
Versions: {versions}.
{note}
![Curves of the run](curves.png)

Held-out text at step {evaluated}:

| | |
|---|---|
{evaluation}

## Scores after fine-tuning

{scores}
"""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--hardware", required=True, help="what the run was trained on, for the model card")
    parser.add_argument("--note", default="", help="a paragraph for the model card, after the command")
    parser.add_argument("--scores", type=Path, help="results.md of tests.benchmarks.glue")
    parser.add_argument("--output", type=Path, default=package_folder(NAME), help="default: the folder of the package")
    options = parser.parse_args(arguments)
    try:
        facts = {"hardware": options.hardware, "note": options.note, "scores": options.scores}
        size = embed(options.run, options.output, **facts)
    except UserError as error:
        say(str(error), error=True)
        return error.exit_status
    say(f"wrote {options.output}: {size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
