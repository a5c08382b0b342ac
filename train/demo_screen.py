"""What the demo shows: masked and replaced words in color, the table of results, and a picture."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from deberta_jax.console import PlainConsole, plain_text

from .demo_questions import Answers, Question
from .reporting.jsonl import read_records
from .reporting.pictures import open_figure
from .samples import SampledToken
from .sweep import mean_and_margin

# Minimum probability of being replaced -> style of the token; less probable tokens keep the terminal's color.
_STYLES = ((0.5, "bold red"), (0.2, "dark_orange"), (0.08, "yellow"))
LABELS = {
    "tiny": "deberta-v3-tiny",
    "random": "random weights",
    "tfidf": "TF-IDF",
    "most_frequent": "most frequent class",
}


class TimeLeft:
    """Estimates the time that is left from the stages that have ended, which took longer or less than expected.

    Args:
      expected: seconds of each stage, in their order.
      now: the clock.
    """

    def __init__(self, expected: Mapping[str, float], now: Callable[[], float] = time.monotonic) -> None:
        self._expected, self._now, self._began = dict(expected), now, now()
        self._ended = 0.0  # expected seconds of what has ended

    def __str__(self) -> str:
        """Returns the time that has passed and the time that is left, such as "1:10 passed, about 2:50 left"."""
        passed, total = self._now() - self._began, sum(self._expected.values())
        if not self._ended:
            return f"about {_minutes(total)} on two quiet cores"
        left = max(0.0, total - self._ended) * passed / self._ended
        return f"{_minutes(passed)} passed, about {_minutes(left)} left"

    def end(self, stage: str, share: float = 1.0) -> None:
        """Records that a share of a stage has ended; all of the stages before it have."""
        names = list(self._expected)
        before = names[: names.index(stage)]
        self._ended = sum(self._expected[name] for name in before) + share * self._expected[stage]

    @property
    def passed(self) -> float:
        """Seconds since the beginning."""
        return self._now() - self._began


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


# -------------------------------------------------------------------- masked and replaced words


def show_text(console: PlainConsole, tokens: Sequence[SampledToken]) -> None:
    """Prints a text with its masked words, the generator's guesses, and what the discriminator makes of its samples."""
    masked, judged = Text(), Text()
    masked.append("masked:    ", style="dim")
    judged.append("replaced:  ", style="dim")
    table = Table("the author's word", "the generator's guesses", "drawn", box=None, padding=(0, 3, 0, 0))
    for token in tokens:
        space = " " if token.has_space else ""
        if not token.guesses:
            masked.append(space + _plain(token.original))
            judged.append(_judged(token, space))
            continue
        masked.append(f"{space}[MASK]", style="bold cyan")
        judged.append(_judged(token, " " if token.shown_has_space else ""))
        guesses = Text(", ").join(
            plain_text(
                f"{guess.text.strip()} {100 * guess.probability:.0f} %",
                "green" if _same(guess.text, token.original) else "",
            )
            for guess in token.guesses
        )
        table.add_row(plain_text(token.original.strip(), "bold"), guesses, plain_text(token.shown.strip()))
    console.print(masked)
    console.print(Padding(table, (0, 0, 0, len("masked:    "))))
    console.print(judged)
    console.print()


def _judged(token: SampledToken, space: str) -> Text:
    probability = token.replaced or 0.0
    style = next((style for threshold, style in _STYLES if probability >= threshold), "")
    replaced = token.shown != token.original
    text = Text(space)
    text.append(_plain(token.shown), style=f"{style}{' underline' if replaced else ''}")
    if replaced:
        text.append(f" ({_plain(token.original)}, {100 * probability:.0f} %)", style="dim")
    return text


def _plain(text: str) -> str:
    return plain_text(text.strip()).plain


def _same(first: str, second: str) -> bool:
    return first.strip() == second.strip()


# -------------------------------------------------------------------- results


def results_table(question: Question, answers: Answers) -> Table:
    """Returns a table of the accuracies on a question, with 95 % intervals over the seeds."""
    table = Table("method", "accuracy", "95 %", "lowest to highest", title=question.text, title_justify="left")
    for name, values in (("tiny", answers.tiny), ("random", answers.random)):
        mean, margin = mean_and_margin(values)
        around = f"± {100 * margin:.1f}" if len(values) > 1 else "-"
        table.add_row(
            f"{LABELS[name]}, fine-tuned",
            f"{100 * mean:.1f} %",
            around,
            f"{100 * min(values):.1f} to {100 * max(values):.1f}",
        )
    table.add_row(f"{LABELS['tfidf']} + logistic regression", f"{100 * answers.tfidf:.1f} %", "-", "-")
    table.add_row(LABELS["most_frequent"], f"{100 * answers.most_frequent:.1f} %", "-", "-")
    return table


def verdicts(answers: Answers) -> list[str]:
    """Returns, as sentences, on how many seeds the tiny model beats random weights and TF-IDF."""
    seeds = len(answers.tiny)
    over_random = sum(tiny > random for tiny, random in zip(answers.tiny, answers.random, strict=True))
    over_tfidf = sum(tiny > answers.tfidf for tiny in answers.tiny)
    sentences = [f"deberta-v3-tiny beats random weights on {over_random} of {seeds} seeds"]
    if over_tfidf:
        sentences.append(f"deberta-v3-tiny beats TF-IDF on {over_tfidf} of {seeds} seeds")
    if over_tfidf < seeds:
        sentences.append(f"TF-IDF wins or ties on {seeds - over_tfidf} of {seeds} seeds")
    return sentences


def held_out_table(metrics: Path) -> Table:
    """Returns a table of the first and the last evaluation of a run of pre-training."""
    evaluations = [record for record in read_records(metrics) if "eval/generator_loss" in record]
    first, last = evaluations[0], evaluations[-1]
    table = Table("held-out text", f"step {first['step']}", f"step {last['step']}")
    rows = {
        "generator_loss": "generator: loss per masked token, nats",
        "masked_accuracy": "generator: masked tokens predicted",
        "discriminator_loss": "discriminator: loss per token, nats",
        "replaced_recall": "discriminator: replaced tokens found",
    }
    for key, label in rows.items():
        values = [record.get(f"eval/{key}") for record in (first, last)]
        table.add_row(label, *("-" if value is None else f"{value:.4f}" for value in values))
    return table


def draw_demo(path: Path, metrics: Path, questions: Sequence[tuple[Question, Answers]]) -> None:
    """Draws the curves of pre-training and the accuracies on the questions into a file."""
    records = read_records(metrics)
    with open_figure(path, size=(11, 7)) as figure:
        panels: Any = figure.subplots(2, 2).flat
        for axes, key, title in (
            (panels[0], "generator_loss", "Pre-training: generator, masked tokens"),
            (panels[1], "discriminator_loss", "Pre-training: discriminator, all tokens"),
        ):
            for prefix, style, label in (("", "-", "training"), ("eval/", "o--", "held-out")):
                points = [(record["step"], record[prefix + key]) for record in records if record.get(prefix + key)]
                axes.plot(*zip(*points, strict=True), style, label=label) if points else None
            axes.set(title=title, xlabel="step", ylabel="loss, nats")
            axes.grid(alpha=0.3)
            axes.legend()
        for axes, (question, answers) in zip(panels[2:], questions, strict=False):
            _draw_answers(axes, question, answers)


def _draw_answers(axes: Any, question: Question, answers: Answers) -> None:
    for place, values in enumerate((answers.tiny, answers.random, [answers.tfidf])):
        mean, margin = mean_and_margin(values)
        error = 100 * margin if len(values) > 1 else None
        axes.bar(place, 100 * mean, yerr=error, color=("#2563eb", "#94a3b8", "#d97706")[place], capsize=5, alpha=0.85)
        axes.plot([place] * len(values), [100 * value for value in values], "k.", markersize=4)
        axes.text(place, 1, f"{100 * mean:.1f} %", ha="center", va="bottom", color="white", fontweight="bold")
    axes.axhline(100 * answers.most_frequent, linestyle=":", color="black", linewidth=1)
    axes.set_xticks(range(3), [LABELS[name] for name in ("tiny", "random", "tfidf")])
    axes.set(title=question.text, ylabel="accuracy, %", ylim=(0, 100))
