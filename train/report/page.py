"""The page of a report, from one run or from two runs side by side."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deberta_jax.path_names import distinct_endings
from deberta_jax.terminal import shorten

from ..samples import SampledToken
from .charts import draw_chart, draw_confusions, draw_scores, metric_charts, speed_chart
from .html_parts import Html, element, joined, number, page, setting, table
from .run_folder import RunFolder

_GENERATOR_KEYS = ("masked_accuracy", "generator_loss")
# Phases of the goodput -> color. Others are gray.
_PHASES = {
    "steps": "#16a34a",
    "compile": "#7c3aed",
    "evaluate": "#2563eb",
    "input": "#0891b2",
    "save": "#d97706",
    "steps taken again": "#dc2626",
    "between starts": "#f87171",
}
_OTHER = "#94a3b8"
_MOST_EXAMPLES = 8  # predictions that are shown
_LONGEST_TEXT = 300  # characters of an example
_HOW = (
    "Words in blue boxes were masked; after each are the generator's best guesses. In the line below, tokens that the "
    "generator drew stand in their places, underlined where they are others. The redder a token, the more probable it "
    "is, to the discriminator, that it was replaced."
)


def build_page(runs: Sequence[RunFolder], samples: Sequence["Samples | str"]) -> str:
    """Returns the HTML page of one or two runs.

    Args:
      runs: the runs.
      samples: for each run the texts to show, or a sentence that says why there are none.
    """
    names = run_names(runs)
    title = f"Report: {' and '.join(names)}"
    parts: list[object] = [element("h1", title), element("p", "Made by deberta-jax report.", class_="soft")]
    parts += [element("p", f"{name}: {note}", class_="note") for name, note in _notes(runs, names)]
    parts += [element("h2", "Summary"), _summary(runs, names)]
    parts += [element("h2", "Curves"), *_curves(runs, names)]
    parts += [element("h2", "Time"), *_time(runs, names)]
    shown = [_samples(part) for part in samples]
    if any(run.command == "pretrain" for run in runs):
        parts += [element("h2", "Masked and replaced tokens"), _side_by_side(names, shown)]
    if any(run.predictions or run.results for run in runs):
        parts += [element("h2", "Evaluation"), _evaluation(runs, names)]
    if any(run.predictions for run in runs):
        parts += [element("h2", "Predictions"), _side_by_side(names, [joined(_predictions(run)) for run in runs])]
    parts += [element("h2", "Settings"), *_settings(runs, names)]
    return page(title, parts)


class Samples(tuple[str, list[list[SampledToken]]]):
    """Where the texts come from, and the tokens of each of them."""

    __slots__ = ()


def run_names(runs: Sequence[RunFolder]) -> list[str]:
    """Returns a short name for each run: the name of its folder, with as many folders above it as tell them apart."""
    paths = [run.path.resolve() for run in runs]
    names = distinct_endings([path.parts for path in paths], "/")
    return names or [f"{path} ({number})" for number, path in enumerate(paths, start=1)]


def _notes(runs: Sequence[RunFolder], names: Sequence[str]) -> Iterator[tuple[str, str]]:
    for run, name in zip(runs, names, strict=True):
        if not run.is_finished:
            total = run.setting("steps")
            of_total = f" of {total:,}" if total else ""
            yield name, f"the run has not finished; it has logged step {run.last_step:,}{of_total}"
        if run.summary:
            yield name, f"this is the best of several runs; {_sweep(run.summary)}"
        yield from ((name, note) for note in run.notes)


def _sweep(summary: Mapping[str, Any]) -> str:
    """Returns mean and interval of each setting of several runs."""
    parts = []
    for row in summary.get("settings", ()):
        mean, margin = row.get("mean"), row.get("margin95")
        if isinstance(mean, int | float):
            around = f" ± {margin:.4f}" if isinstance(margin, int | float) else ""
            seeds = len(row.get("seeds", ()))
            parts.append(f"{row.get('setting') or 'as given'}: {row.get('metric')} {mean:.4f}{around} ({seeds} seeds)")
    return "; ".join(parts) or "none of them has a mean"


def _head(names: Sequence[str]) -> list[Html]:
    places = ("first", "second") if len(names) > 1 else ("",)
    return [element("span", name, class_=f"run {place}") for name, place in zip(names, places, strict=True)]


def _summary(runs: Sequence[RunFolder], names: Sequence[str]) -> Html:
    rows: dict[str, list[object]] = {}
    for index, run in enumerate(runs):
        for name, value in _facts(run):
            shown = number(value) if isinstance(value, int | float) else value
            rows.setdefault(name, ["-"] * len(runs))[index] = "-" if shown is None else shown
    return table(["", *_head(names)], [[name, *values] for name, values in rows.items()])


def _facts(run: RunFolder) -> Iterator[tuple[str, object]]:
    yield "command", f"deberta-jax {run.command}"
    objective = run.settings.get("objective")
    if objective:
        yield (
            "objective",
            {"rtd": "replaced token detection", "mlm": "masked language modeling"}.get(str(objective), str(objective)),
        )
    for option in ("model", "init-discriminator", "init-generator", "train", "validation", "kind"):
        if run.settings.get(option) is not None:
            yield option, setting(run.settings[option])
    yield "last step", run.last_step
    if run.per_step:
        size, unit = run.per_step
        yield f"{unit} per step", size
        yield f"{unit} seen", size * run.last_step
    seconds = [(time, count) for _, time, count in run.step_times]
    if seconds:
        per_step = sum(time for time, _ in seconds) / sum(count for _, count in seconds)
        yield "seconds per step", per_step
        if run.per_step:
            yield f"{run.per_step[1]} per second", run.per_step[0] / per_step
    if run.goodput is not None:
        yield "hours in all", run.goodput.total / 3600
        yield "goodput", f"{100 * run.goodput.useful / run.goodput.total:.1f} %"
        yield "starts", run.goodput.starts
    yield "version", run.version or None


def _curves(runs: Sequence[RunFolder], names: Sequence[str]) -> list[object]:
    charts = metric_charts(runs)
    if not charts:
        return [element("p", "Nothing was logged.", class_="soft")]
    cards = [
        element("div", element("h3", chart.title), Html(draw_chart(chart, names)), class_="card") for chart in charts
    ]
    return [
        element("div", *cards, class_="grid"),
        element("h3", "First and last evaluation", class_="above"),
        _evaluated(runs, names),
    ]


def _evaluated(runs: Sequence[RunFolder], names: Sequence[str]) -> Html:
    """Returns a table of the first and the last evaluation of each run."""
    keys = dict.fromkeys(key for run in runs for record in run.records for key in record if key.startswith("eval/"))
    columns, values = [], []
    for run, name in zip(runs, _head(names), strict=True):
        evaluations = [record for record in run.records if any(key.startswith("eval/") for key in record)]
        for record in [evaluations[0], evaluations[-1]] if len(evaluations) > 1 else evaluations:
            step = f"step {record['step']:,}"
            columns.append(joined([name, " ", step]) if len(runs) > 1 else step)
            values.append(record)
    if not values:
        return element("p", "There was no evaluation.", class_="soft")
    rows = [
        [key.removeprefix("eval/").replace("_", " "), *(record.get(key) for record in values)]
        for key in keys
        if all(isinstance(record.get(key), int | float | None) for record in values)
    ]
    return table(["", *columns], rows)


def _time(runs: Sequence[RunFolder], names: Sequence[str]) -> list[object]:
    speed = speed_chart(runs)
    cards: list[object] = []
    if speed is not None:
        cards.append(element("div", element("h3", speed.title), Html(draw_chart(speed, names)), class_="card"))
    spent: list[object] = [element("h3", "How the time was spent")]
    for run, name in zip(runs, _head(names), strict=True):
        content = _goodput(run) if run.goodput else [element("p", "Not recorded.", class_="soft")]
        spent += [name, *content] if len(runs) > 1 else content
    cards.append(element("div", *spent, class_="card"))
    return [element("div", *cards, class_="pair")]


def _goodput(run: RunFolder) -> list[object]:
    assert run.goodput is not None
    goodput = run.goodput
    parts = {"steps": goodput.useful, "steps taken again": goodput.lost, "between starts": goodput.between}
    parts |= goodput.phases
    shares = {name: seconds / goodput.total for name, seconds in parts.items() if seconds > 0.001 * goodput.total}
    ordered = sorted(shares.items(), key=lambda item: (item[0] != "steps", -item[1]))
    bar = [
        element("div", style=f"background:{_PHASES.get(name, _OTHER)};width:{100 * share:.2f}%", title=name)
        for name, share in ordered
    ]
    legend = [
        element(
            "span",
            element("i", class_="key", style=f"background:{_PHASES.get(name, _OTHER)}"),
            f"{name} {100 * share:.1f} %",
        )
        for name, share in ordered
    ]
    start = "1 start" if goodput.starts == 1 else f"{goodput.starts} starts"
    total = element("p", f"{goodput.total / 60:,.1f} minutes in {start}.", class_="soft")
    return [element("div", *bar, class_="bar"), element("div", *legend, class_="legend"), total]


def _side_by_side(names: Sequence[str], parts: Sequence[object]) -> Html:
    heads = _head(names) if len(names) > 1 else [""]
    cards = [
        element("div", *([element("h3", head)] if head else []), part, class_="card")
        for head, part in zip(heads, parts, strict=True)
    ]
    return element("div", *cards, class_="pair" if len(cards) > 1 else "")


def _samples(samples: "Samples | str") -> Html:
    if isinstance(samples, str):
        return element("p", samples, class_="soft")
    source, texts = samples
    parts: list[object] = [element("p", source, " ", _HOW, class_="soft")]
    for tokens in texts:
        parts += [element("p", *map(_masked, tokens), class_="text")]
        if any(token.replaced is not None for token in tokens):
            parts += [element("p", *map(_judged, tokens), class_="text")]
    return joined(parts)


def _masked(token: SampledToken) -> Html:
    space = " " if token.has_space else ""
    if not token.guesses:
        return joined([space, token.original])
    guesses = ", ".join(f"{guess.text.strip()} {100 * guess.probability:.0f} %" for guess in token.guesses)
    known = token.guesses[0].text.strip() == token.original.strip()
    word = element("b", token.original.strip(), class_="right" if known else "")
    return joined([space, element("span", word, " ", element("small", guesses), class_="mask")])


def _judged(token: SampledToken) -> Html:
    assert token.replaced is not None
    space = " " if token.shown_has_space else ""
    replaced = token.shown != token.original
    title = f"replaced with probability {100 * token.replaced:.0f} %"
    if replaced:
        title += f"; the text has {token.original.strip()}"
    shown = element(
        "span",
        token.shown.strip(),
        class_="judged replaced" if replaced else "judged",
        style=f"background:rgba(220,38,38,{min(0.85, token.replaced):.2f})" if token.replaced > 0.03 else "",
        title=title,
    )
    return joined([space, shown])


def _evaluation(runs: Sequence[RunFolder], names: Sequence[str]) -> Html:
    rows: dict[str, list[object]] = {}
    for index, run in enumerate(runs):
        for split, figures in run.results.items():
            for metric, value in figures.items():
                rows.setdefault(f"{split}: {metric.replace('_', ' ')}", [None] * len(runs))[index] = value
    figures = table(["", *_head(names)], [[name, *values] for name, values in rows.items()]) if rows else ""
    matrices = []
    for run, name in zip(runs, names, strict=True):
        for split, records in run.predictions.items():
            title = f"{split}: labels and predictions" + (f" of {name}" if len(names) > 1 else "")
            if drawn := draw_confusions(records, title) or draw_scores(records, title):
                small = Html(drawn.replace("<svg ", '<svg class="small" ', 1))
                matrices.append(element("div", element("h3", title), small, class_="card"))
    return joined([figures, element("div", *matrices, class_="pair", style="margin-top:14px")])


def _predictions(run: RunFolder) -> Iterator[object]:
    """Yields examples: of classes the mistakes that the model was surest of, and how many there are."""
    for split, records in run.predictions.items():
        yield element("h3", split)
        if not all(isinstance(record.get("prediction"), str) and "label" in record for record in records):
            keys = Counter(key for record in records[:_MOST_EXAMPLES] for key in record)
            rows = [[_shown(record.get(key)) for key in keys] for record in records[:_MOST_EXAMPLES]]
            yield table([key.replace("_", " ") for key in keys], rows)
            continue
        wrong = [record for record in records if record["prediction"] != record["label"]]
        yield element("p", f"{len(wrong):,} of {len(records):,} are wrong; the surest mistakes:", class_="soft")
        surest = sorted(wrong, key=_confidence, reverse=True)[:_MOST_EXAMPLES]
        rows = [
            [
                element("span", record["prediction"], class_="wrong"),
                element("span", record["label"], class_="right"),
                _confidence(record) or None,
                shorten(" | ".join(_texts(record)), _LONGEST_TEXT),
            ]
            for record in surest
        ]
        yield table(["prediction", "label", "probability", "text"], rows)


def _confidence(record: Mapping[str, Any]) -> float:
    probabilities = record.get("probabilities")
    value = probabilities.get(record["prediction"]) if isinstance(probabilities, dict) else None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0


def _texts(record: Mapping[str, Any]) -> list[str]:
    names = ("label", "prediction", "probabilities")
    return [str(value) for key, value in record.items() if key not in names]


def _shown(value: Any) -> object:
    if isinstance(value, dict):
        return shorten(", ".join(f"{key} {_shown(item)}" for key, item in value.items()), _LONGEST_TEXT)
    if isinstance(value, list):
        return shorten(" ".join(str(_shown(item)) for item in value[:100]), _LONGEST_TEXT)
    if isinstance(value, float):
        return number(value)
    return shorten(str(value), _LONGEST_TEXT)


def _settings(runs: Sequence[RunFolder], names: Sequence[str]) -> list[object]:
    options = dict.fromkeys(option for run in runs for option in run.settings)
    if not options:
        return [element("p", "Not recorded.", class_="soft")]
    rows = [[option, *(setting(run.settings.get(option)) for run in runs)] for option in options]
    if len(runs) == 1:
        given = [row for row in rows if row[1] != "-"]
        return [element("details", element("summary", f"{len(given)} settings"), table(["option", "value"], given))]
    different = [row for row in rows if len(set(row[1:])) > 1]
    same = [row for row in rows if len(set(row[1:])) == 1 and row[1] != "-"]
    head = ["option", *_head(names)]
    return [
        table(head, different, marked=range(len(different))) if different else element("p", "All are the same."),
        element("details", element("summary", f"{len(same)} settings are the same"), table(head, same)),
    ]
