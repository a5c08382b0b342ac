"""Compares pre-training objectives: RTD with GDES, ES and NES, and MLM, on the same tokens.

    python -m tests.benchmarks.objectives GLUE --text books.txt.xz
    python -m tests.benchmarks.objectives GLUE --corpus rows --tokenizer tok --page docs/objectives.md

The same small model, with the same rows in the same order, is pre-trained by each objective of section 3 of the
DeBERTaV3 paper. GDES and NES update generator and discriminator one after the other, ES both by one sum of losses, as
in the paper. MLM trains a model of the discriminator's size and masks single pieces, as RTD does. Each step of RTD
trains a generator as well: the objectives see the same tokens, but do not take the same time.

The held-out rows, with the same masks for all, give the loss of masked tokens and how well replaced tokens are found.
Replacements of a better generator are harder to find, so precision and recall with each objective's own generator are
not comparable. Therefore all discriminators also judge the replacements of one generator against which none was
trained, the model of MLM. The loss of masked tokens compares the three generators; the model of MLM is larger.

Then each result is fine-tuned on the tasks of `tests.benchmarks.glue`, beside random weights and TF-IDF. GLUE is the
folder of their files.

With the defaults one pre-training takes about a quarter of an hour on two quiet cores, and one seed of the fine-tuning
of all five rows about an hour (estimates). The same command continues after an interruption; --max-hours ends it in
good time. `results.md` and `results.json` in the output folder have what is finished.
"""

import argparse
import dataclasses
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deberta_jax import DebertaConfig, Tokenizer
from deberta_jax.atomic_files import write_file
from deberta_jax.errors import MissingFileError, UserError
from deberta_jax.rtd import RTDConfig
from deberta_jax.strict_json import to_json
from deberta_jax.terminal import say
from deberta_jax.train import prepare, pretrain
from deberta_jax.train.configs import ModelsConfig, ObjectiveConfig, OptimizerConfig, PretrainConfig, TextConfig
from deberta_jax.train.data import train_tokenizer
from deberta_jax.train.data.corpus import open_corpus
from deberta_jax.train.reporting.jsonl import read_records

from . import glue
from .held_out import Rows, masked_tokens, replaced_tokens
from .study import Study, one_line_errors, print_page, until_time_is_over, update_page
from .table import table

_LOSS = "eval/generator_loss"
MARK = "tests.benchmarks.objectives"
OBJECTIVES = {"gdes": "RTD, GDES", "nes": "RTD, NES", "es": "RTD, ES", "mlm": "MLM"}
LAYERS, GENERATOR_LAYERS = 6, 2
RATE = 3e-4  # with 1.5e-3 the discriminator collapses: it maps all tokens to one vector
MODEL = DebertaConfig(
    vocab_size=16064,
    hidden_size=192,
    num_hidden_layers=LAYERS,
    num_attention_heads=3,
    intermediate_size=640,
    hidden_dropout_prob=0.0,  # no text is seen twice
    attention_probs_dropout_prob=0.0,
    relative_attention=True,
    position_biased_input=False,
    pos_att_type=("c2p", "p2c"),
    position_buckets=64,
    norm_rel_ebd="layer_norm",
    share_att_key=True,
    initializer_range=0.03,  # 0.02 is meant for widths of 384 and more
)


@dataclasses.dataclass(frozen=True)
class PreTraining:
    """The settings that all objectives share.

    Attributes:
      tokenizer: a folder.
      corpus: a folder of packed rows.
      model: a JSON file with generator and discriminator.
      sequence_length: tokens of a row.
      steps: number of updates.
      batch_size: rows of an update.
      rate: the learning rate.
      dtype: the type of the activations.
    """

    tokenizer: Path
    corpus: Path
    model: Path
    sequence_length: int
    steps: int
    batch_size: int
    rate: float
    dtype: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("glue", type=Path, help="folder of the files of GLUE (see tests.benchmarks.glue)")
    parser.add_argument("--output", type=Path, default=Path("runs/objectives"))
    parser.add_argument(
        "--text", type=Path, nargs="+", default=[], help="(default: the embedded novels, a million tokens)"
    )
    parser.add_argument("--vocab-size", type=int, default=16000, help="of the tokenizer that is trained on the text")
    parser.add_argument("--corpus", type=Path, help="rows of `deberta-jax prepare`, instead of text")
    parser.add_argument("--tokenizer", type=Path, help="that of --corpus")
    parser.add_argument(
        "--model", type=Path, help="JSON file of generator and discriminator (default: 6 layers of 192)"
    )
    parser.add_argument("--sequence-length", type=int, default=128, help="(default: 128)")
    parser.add_argument("--steps", type=int, default=2000, help="updates of each pre-training (default: 2000)")
    parser.add_argument("--batch-size", type=int, default=16, help="(default: 16)")
    parser.add_argument("--pretraining-rate", type=float, default=RATE, help="learning rate (default: 3e-4)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="(default: float32)")
    parser.add_argument("--pretraining-seeds", type=int, default=1, help="(default: 1)")
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES), help="(default: all)")
    parser.add_argument("--max-hours", type=float, default=float("inf"), help="time of this start (default: no limit)")
    parser.add_argument("--page", type=Path, help=f"page with <!-- {MARK} --> and <!-- end --> to update")
    glue.add_options(parser)
    options = parser.parse_args()
    with one_line_errors():
        run(options)


def run(options: argparse.Namespace) -> None:
    """Does what is not yet done, and prints the tables. Raises UserError."""
    if (options.corpus is None) != (options.tokenizer is None):
        raise UserError("--corpus needs --tokenizer, the one that it was prepared with, and the other way around")
    if options.corpus is not None and options.text:
        raise UserError("give --text or --corpus, not both")
    if options.pretraining_seeds < 1:
        raise UserError(f"pretraining-seeds is {options.pretraining_seeds}; it must be at least 1")
    if options.model is not None and not options.model.is_file():
        raise MissingFileError(f"{options.model} is not a file; give the JSON file of generator and discriminator")
    tuning = glue.fine_tuning(options)
    study = Study(options.output, options.max_hours)
    study.output.mkdir(parents=True, exist_ok=True)
    settings = prepared(options)
    seeds = range(options.pretraining_seeds)
    page = study.output / "results.md"
    with until_time_is_over():
        measured: dict[str, list[dict[str, Any]]] = {}
        for seed in seeds:
            for name in sorted(options.objectives, key=lambda name: name != "mlm"):  # its model judges the others
                on_the_way = pretrained(study, settings, name, seed)
                figures = measure(study, settings, name, seed, "mlm" in options.objectives)
                measured.setdefault(name, []).append(figures | {"masked": figures["masked"] | on_the_way})
                write(options, page, settings, measured)
        starts = [
            glue.Start(OBJECTIVES[name], model_of(study, name, seed), folder=f"{name}-{seed}")
            for name in options.objectives
            for seed in seeds
        ]
        starts.append(glue.Start(glue.RANDOM, starts[0].model, random=True, folder="random"))
        for results in glue.run_all(study, tuning, starts):
            write_file(study.output / "results.json", to_json({"held_out": measured, "glue": results}, indent=2) + "\n")
            write(options, page, settings, measured, glue.markdown(tuning, starts, results))
    print_page(page)


def prepared(options: argparse.Namespace) -> PreTraining:
    """Returns the settings, after the tokenizer, the rows and the model's file are made where they are not given."""
    tokenizer, corpus, model = options.tokenizer, options.corpus, options.model
    if corpus is None:
        tokenizer, corpus = options.output / "tokenizer", options.output / "corpus"
        text = tuple(options.text)
        if not tokenizer.exists():
            train_tokenizer.main(
                train_tokenizer.TokenizerConfig(output=tokenizer, text=text, vocab_size=options.vocab_size)
            )
        prepare.main(
            prepare.PrepareConfig(
                output=corpus, tokenizer=tokenizer, text=text, sequence_length=options.sequence_length
            )
        )
    if model is None:
        pieces = Tokenizer.from_folder(tokenizer).vocab_size
        large = MODEL.replace(vocab_size=-(-pieces // 64) * 64)
        pair = RTDConfig(discriminator=large, generator=large.replace(num_hidden_layers=GENERATOR_LAYERS))
        model = options.output / "model.json"
        write_file(model, to_json(pair.to_json(), indent=2) + "\n")
    return PreTraining(
        tokenizer,
        corpus,
        model,
        options.sequence_length,
        options.steps,
        options.batch_size,
        options.pretraining_rate,
        options.dtype,
    )


# -------------------------------------------------------------------- pre-training


def run_folder(study: Study, name: str, seed: int) -> Path:
    return study.output / "pretraining" / f"{name}-{seed}"


def model_of(study: Study, name: str, seed: int) -> Path:
    """Returns the folder of the model that is fine-tuned."""
    return run_folder(study, name, seed) / ("model" if name == "mlm" else "discriminator")


def pretrained(study: Study, settings: PreTraining, name: str, seed: int) -> dict[str, Any]:
    """Pre-trains one model, unless it is there, and returns the losses of masked tokens at the quarters of the run."""
    folder = run_folder(study, name, seed)
    config = PretrainConfig(
        output=folder,
        tokenizer=settings.tokenizer,
        data=TextConfig(corpus=(str(settings.corpus),), sequence_length=settings.sequence_length),
        models=ModelsConfig(model=str(settings.model), embedding_sharing=None if name == "mlm" else name),
        objective=ObjectiveConfig(
            name="mlm" if name == "mlm" else "rtd", decoupled=name != "es", max_ngram=1 if name == "mlm" else None
        ),
        batch_size=settings.batch_size,
        steps=settings.steps,
        optimizer=OptimizerConfig(learning_rate=settings.rate),
        dtype=settings.dtype,
        evaluate_every=max(1, settings.steps // 4),
        save_every=max(1, settings.steps // 10),
        keep=1,
        log_every=max(1, min(50, settings.steps // 10)),
        seed=seed,
    )
    inputs = {
        "model": json.loads(settings.model.read_text(encoding="utf-8")),
        "corpus": open_corpus(settings.corpus).fingerprint,
        "steps": settings.steps,
        "batch size": settings.batch_size,
        "learning rate": settings.rate,
        "dtype": settings.dtype,
    }

    def run() -> dict[str, Any]:
        say(f"\npre-training: {OBJECTIVES[name]}, seed {seed}")
        pretrain.main(dataclasses.replace(config, max_seconds=study.seconds_left()))
        records = read_records(folder / "metrics.jsonl")
        losses = {record["step"]: record[_LOSS] for record in records if _LOSS in record}
        # MLM's evaluations have masks of its own.
        return {"on_the_way": [None if name == "mlm" else losses.get(config.evaluate_every * i) for i in (1, 2, 3)]}

    result = study.once(f"pretraining/{name}-{seed}/result.json", inputs, run)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return result


def measure(study: Study, settings: PreTraining, name: str, seed: int, has_mlm: bool) -> dict[str, Any]:
    """Returns the figures of one pre-trained model on the held-out rows (see `held_out`)."""
    folder, judge_of = run_folder(study, name, seed), run_folder(study, "mlm", seed) / "model"
    generator = folder / ("model" if name == "mlm" else "generator")
    inputs = {
        "model": glue.model_digest(model_of(study, name, seed)),
        "mlm": glue.model_digest(judge_of) if has_mlm else None,
    }

    def run() -> dict[str, Any]:
        rows = Rows(open_corpus(settings.corpus), Tokenizer.from_folder(settings.tokenizer), settings.batch_size)
        say(f"\nheld-out rows: {OBJECTIVES[name]}, seed {seed}")
        figures: dict[str, Any] = {"masked": masked_tokens(generator, rows)}
        if name != "mlm":
            discriminator = folder / "discriminator"
            figures["own"] = replaced_tokens(generator, discriminator, rows)
            if has_mlm:
                figures["common"] = replaced_tokens(judge_of, discriminator, rows)
        return figures

    return study.once(f"held-out/{name}-{seed}.json", inputs, run)


# -------------------------------------------------------------------- tables


def write(
    options: argparse.Namespace,
    page: Path,
    settings: PreTraining,
    measured: Mapping[str, Sequence[Mapping[str, Any]]],
    fine_tuned: str = "",
) -> None:
    """Writes all tables to the output folder, and to the page of the documentation that the options name."""
    tokens = settings.steps * settings.batch_size * settings.sequence_length
    model = RTDConfig.from_json(settings.model)
    parts = [
        f"{model.discriminator.num_hidden_layers} layers of width {model.discriminator.hidden_size} (generator: "
        f"{model.generator.num_hidden_layers}), {tokens / 1e6:.1f} M tokens ({settings.steps:,} steps of "
        f"{settings.batch_size} x {settings.sequence_length}), {settings.dtype}, learning rate {settings.rate:g}, "
        f"pre-training seeds: {max(map(len, measured.values()))}. Masked tokens of held-out text (loss in nats, "
        "accuracy in percent), and replaced tokens in percent:",
        *held_out_tables(measured),
    ]
    if fine_tuned:
        parts += ["After fine-tuning, in percent, on the development sets (MRPC: test set):", fine_tuned]
    write_file(page, "\n\n".join(parts) + "\n")
    if options.page is not None:
        update_page(options.page, MARK, parts)


def held_out_tables(measured: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Returns the tables of masked and of replaced held-out tokens: means over the seeds of pre-training."""
    masked, replaced = [], []
    for name in (name for name in OBJECTIVES if name in measured):
        seeds = measured[name]
        on_the_way = [_mean((seed["masked"]["on_the_way"][i] for seed in seeds), 1, 3) for i in range(len(WAY))]
        loss, accuracy = (_mean((seed["masked"][key] for seed in seeds), *form) for key, form in _MASKED.items())
        masked.append([OBJECTIVES[name], *on_the_way, loss, accuracy])
        for key, generator in GENERATORS.items():
            if judged := [seed[key] for seed in seeds if key in seed]:
                figures = [_mean(one[figure] for one in judged) for figure in FIGURES]
                replaced.append([OBJECTIVES[name], generator, *figures])
    tables = [table(["objective", *(f"loss after {part} %" for part in WAY), "loss at the end", "accuracy"], masked)]
    if replaced:
        tables.append(table(["objective", "generator", *FIGURES.values()], replaced))
    return tables


WAY = (25, 50, 75)  # percent of the steps of pre-training
GENERATORS = {"own": "its own", "common": "MLM's model"}
FIGURES = {
    "replaced": "replaced",
    "precision": "precision",
    "recall": "recall",
    "break_even": "break-even",
    "average_precision": "average precision",
}
_MASKED = {"loss": (1, 3), "accuracy": (100, 1)}


def _mean(values: Iterable[float | None], scale: float = 100, digits: int = 1) -> str:
    """Returns the mean of the values that are known, or a dash."""
    known = [value for value in values if value is not None]
    return f"{scale * sum(known) / len(known):.{digits}f}" if known else "-"


if __name__ == "__main__":
    main()
