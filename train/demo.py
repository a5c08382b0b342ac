"""The whole library in five minutes: an embedded model guesses, learns more, and is fine-tuned for two questions.

    deberta-jax demo --output runs/demo        (or: make demo)

It starts from deberta-v3-tiny, which is part of the package. One question can only be answered from the order of
words, the other one mostly from the words themselves, which TF-IDF is good at. All methods are evaluated on the same
texts, from chapters that none of them has seen before.
"""

import dataclasses
from pathlib import Path
from typing import ClassVar

from deberta_jax.atomic_files import write_file
from deberta_jax.console import PlainConsole
from deberta_jax.predict.loaded_model import LoadedModel
from deberta_jax.predict.open_model import open_model
from deberta_jax.strict_json import to_json

from . import pretrain
from .configs import ModelsConfig, OptimizerConfig, PretrainConfig, TextConfig
from .demo_questions import Answers, Question, answer
from .demo_screen import TimeLeft, draw_demo, held_out_table, results_table, show_text, verdicts
from .demo_texts import KNOWN_TO_TINY, write_texts
from .reporting.pictures import draw_or_report
from .samples import sample_texts
from .settings import Positive, Seed, Settings

TINY = Path("deberta-v3-tiny")
SEEDS = 5  # of each fine-tuning
# Sentences of this project, so that no model has seen them.
_TEXTS = (
    "The old captain opened the letter with great care, and his daughter saw that his hand was shaking.",
    "She had walked to the village in the morning, and came back before dinner with a basket of apples.",
)
# Seconds on two quiet cores, for the estimate of the time left.
_SAMPLES, _TEXTS_SECONDS, _PRETRAINING, _QUESTION = 12, 5, 44, 25  # of a stage without its steps
_PRETRAINING_STEP, _STEP, _TEST = 0.6, 0.4, 1.7  # of one step, and of testing one model


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoConfig(Settings):
    """See deberta-v3-tiny guess, learn on and answer two questions, in about 5 minutes on two cores. Repeat the same
    command to resume its pre-training."""

    EXAMPLES: ClassVar[tuple[str, ...]] = ("--output runs/demo",)
    IS_RUN: ClassVar[bool] = True

    output: Path = Path("runs/demo")
    """folder for all files of the demo"""
    pretrain_steps: Positive = 50
    """number of steps of pre-training"""
    finetune_steps: Positive = 18
    """number of steps of each fine-tuning for the novel; half as many for the exchanged words"""
    seed: Seed = 0
    """seed of pre-training, and the first seed of fine-tuning"""


def main(config: DemoConfig) -> None:
    """Runs all stages, prints their results and writes results.json, demo.png and screen.svg."""
    console, folder = PlainConsole(record=True), config.output
    folder.mkdir(parents=True, exist_ok=True)
    questions = questions_of(config)
    clock = TimeLeft(expected_seconds(config))
    console.print(f"The demo takes {clock}.", soft_wrap=True)

    console.rule("1 of 4: what deberta-v3-tiny knows")
    models = open_model(f"{TINY}/generator"), open_model(TINY)
    show_samples(console, *models, seed=config.seed)
    clock.end("samples")

    console.rule("2 of 4: pre-training continues on six novels (RTD, GDES)")
    counts = write_texts(folder)
    console.print(
        f"deberta-v3-tiny was pre-trained on other books in the public domain. Of the six novels they include one, "
        f"{KNOWN_TO_TINY}, which neither question uses. No model is trained on the chapters of the test examples."
    )
    clock.end("texts")
    pretrain.main(pretraining_of(config))
    clock.end("pretraining")
    metrics = folder / "pretraining" / "metrics.jsonl"
    console.print(held_out_table(metrics))

    found: list[tuple[Question, Answers]] = []
    for number, question in enumerate(questions, start=3):
        console.rule(f"{number} of 4: {question.text}")
        train, test = counts[f"{question.name}-train"], counts[f"{question.name}-test"]
        console.print(f"{train} training examples, {test} test examples. {clock}.", soft_wrap=True)
        done = 0

        def progress(line: str, question: Question = question) -> None:
            nonlocal done
            done += 1
            clock.end(question.name, done / SEEDS)
            console.print(f"{line}   ({clock})", soft_wrap=True)

        seeds = list(range(config.seed, config.seed + SEEDS))
        answers = answer(question, folder, folder / "pretraining" / "discriminator", seeds, progress=progress)
        found.append((question, answers))
        console.print(results_table(question, answers))
        for sentence in verdicts(answers):
            console.print(f"* {sentence}", soft_wrap=True)

    results = {question.name: answers.to_json() for question, answers in found}
    write_file(folder / "results.json", to_json(results, indent=2) + "\n")
    console.rule(f"{clock.passed / 60:.1f} minutes")
    draw_or_report(folder / "demo.png", lambda path: draw_demo(path, metrics, found), log=console.print)
    for command in (
        f"deberta-jax report {folder / 'pretraining'}",
        f"deberta-jax fill-mask {folder / 'pretraining' / 'generator'} 'She went to the door and [MASK] it.'",
    ):
        console.print(f"Next: {command}", soft_wrap=True)
    write_file(folder / "screen.svg", console.export_svg(title="deberta-jax demo"))


def questions_of(config: DemoConfig) -> tuple[Question, Question]:
    """Returns the two questions with the number of steps of the settings."""
    return (
        Question(
            name="exchange",
            text="As the author wrote it, or with two words exchanged?",
            max_length=32,
            batch_size=32,
            steps=-(-config.finetune_steps // 2),
            learning_rate=3e-4,
            by_token=True,
        ),
        Question(
            name="novel",
            text="Which of five novels is the passage from?",
            max_length=64,
            batch_size=16,
            steps=config.finetune_steps,
            learning_rate=1e-3,
        ),
    )


def expected_seconds(config: DemoConfig) -> dict[str, float]:
    """Returns the seconds of each stage on two quiet cores, in their order."""
    return {
        "samples": _SAMPLES,
        "texts": _TEXTS_SECONDS,
        "pretraining": _PRETRAINING + config.pretrain_steps * _PRETRAINING_STEP,
        **{
            question.name: _QUESTION + 2 * SEEDS * (question.steps * _STEP + _TEST) for question in questions_of(config)
        },
    }


def pretraining_of(config: DemoConfig) -> PretrainConfig:
    """Returns the settings of the pre-training."""
    folder = config.output
    return PretrainConfig(
        output=folder / "pretraining",
        tokenizer=TINY,
        data=TextConfig(text=(folder / "pretraining.txt",), sequence_length=64),
        models=ModelsConfig(init_generator=TINY / "generator", init_discriminator=TINY / "discriminator"),
        batch_size=16,
        steps=config.pretrain_steps,
        optimizer=OptimizerConfig(learning_rate=3e-4, warmup=0.1, beta2=0.98),
        discriminator_learning_rate=2e-4,
        evaluate_first=True,
        evaluate_every=max(1, config.pretrain_steps // 2),
        save_every=0,
        keep=1,
        log_every=10,
        seed=config.seed,
    )


def show_samples(console: PlainConsole, generator: LoadedModel, discriminator: LoadedModel, *, seed: int) -> None:
    """Prints texts with masked words as the generator fills them and as the discriminator judges the result."""
    console.print(
        "The generator guesses masked words. One of its guesses is drawn for each, and the discriminator judges every "
        "token: yellow, orange and red ones are probably replaced. After a replaced word stand the author's and the "
        "probability that it was replaced.\n"
    )
    tokenizer = generator.tokenizer
    rows = [tokenizer.with_special_tokens(tokenizer.encode(text)).input_ids for text in _TEXTS]
    for tokens in sample_texts(rows, generator, discriminator, seed=seed):
        show_text(console, tokens)
