"""The model card: a README.md with the metadata that the Hugging Face hub reads, written from what a run records."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import jax

from deberta_jax.config import DebertaConfig
from deberta_jax.errors import MissingPackageError
from deberta_jax.terminal import message_text
from deberta_jax.versions import version_of

from .hub import NAME
from .mapping import Params
from .run_record import RunRecord

CARD = "README.md"
_MARK = "<!-- Written by deberta-jax, which replaces this file. Delete this line to keep your own text. -->"
_SETTINGS = (  # those that say how a model came about, in this order
    *("model", "random-weights", "init-discriminator", "init-generator", "train", "validation", "test", "text"),
    *("kind", "objective", "text-column", "pair-column", "choices-columns", "label-column"),
    *("max-length", "sequence-length", "batch-size", "accumulation", "epochs", "steps"),
    *("optimizer.learning-rate", "optimizer.schedule", "optimizer.warmup", "optimizer.weight-decay"),
    *("optimizer.max-grad-norm", "layer-decay", "freeze-layers", "label-smoothing", "classifier-dropout"),
    *("class-weights", "focal-gamma", "sift.weight", "lora.rank", "lora.alpha", "lora.targets"),
    *("select", "metric", "patience", "dtype", "seed"),
)
_NO_LICENSE = "The author has not stated a license."
_LIBRARIES = ("deberta-jax", "jax", "flax")


class _Use(NamedTuple):
    """How a model with some heads is used: the task of the hub, the class of transformers, and what it is in words."""

    pipeline: str | None
    transformers: str
    words: str


class CardOptions(NamedTuple):
    """What a user says about a model, which no file records.

    Attributes:
      name: Its name, such as "owner/model".
      license: An identifier of the hub, such as "mit"; None if it was not stated.
      languages: Codes such as "en".
      library: The library that reads the files, "transformers" or "deberta-jax".
    """

    name: str
    license: str | None = None
    languages: tuple[str, ...] = ()
    library: str = "transformers"


def is_ours(folder: Path) -> bool:
    """Returns whether a folder has no model card, or one that this library wrote and may replace."""
    try:
        return _MARK in (folder / CARD).read_text(encoding="utf-8")
    except FileNotFoundError:
        return True
    except (UnicodeDecodeError, OSError):
        return False


def model_card(config: DebertaConfig, params: Params, record: RunRecord, options: CardOptions) -> str:
    """Returns the text of a model card. What is not known is left out.

    Args:
      config: The configuration of the model.
      params: Its parameters.
      record: What its run recorded.
      options: What the user says about it.

    Raises:
      MissingPackageError: huggingface_hub is not installed.
    """
    use = _use(config, params)
    sections = [
        f"---\n{_metadata(config, use, record, options)}\n---",
        _MARK,
        f"# {options.name.rpartition('/')[2]}",
        _description(config, params, use, record, options),
        _usage(config, use, options),
        _scores(record),
        _training(record),
        _limits(config, use, record),
        _versions(record),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _use(config: DebertaConfig, params: Params) -> _Use:
    heads = set(params) - {"deberta"}
    if {"pooler", "classifier"} <= heads:
        if config.problem_type == "regression" or config.num_labels == 1:
            return _Use("text-classification", "AutoModelForSequenceClassification", "scores texts or pairs of texts")
        return _Use("text-classification", "AutoModelForSequenceClassification", "classifies texts or pairs of texts")
    if "classifier" in heads:
        return _Use("token-classification", "AutoModelForTokenClassification", "labels the words of a text")
    if "span_classifier" in heads:
        return _Use("question-answering", "AutoModelForQuestionAnswering", "finds answers in a text")
    if "mlm_head" in heads and "rtd_head" not in heads:
        return _Use("fill-mask", "AutoModelForMaskedLM", "predicts masked tokens")
    return _Use("feature-extraction", "AutoModel", "encodes texts; fine-tune it for a task")


# ----------------------------------------------------------------------------------------------------- metadata


def _metadata(config: DebertaConfig, use: _Use, record: RunRecord, options: CardOptions) -> str:
    try:
        from huggingface_hub import EvalResult, ModelCardData
    except ImportError:
        raise MissingPackageError(
            "a model card needs the package huggingface_hub; install deberta-jax[convert]"
        ) from None
    data = _dataset(record.settings.get("train"))
    results = [
        EvalResult(
            task_type=use.pipeline or "other",
            dataset_name=data or "local files",
            dataset_type=data or "local",
            dataset_split=split,
            metric_type=metric,
            metric_value=round(value, 6),
        )
        for split, metrics in record.results.items()
        for metric, value in metrics.items()
    ]
    base = record.settings.get("model", record.settings.get("init-discriminator"))
    return ModelCardData(
        license=options.license or "unknown",
        language=list(options.languages) or None,
        library_name=options.library,
        pipeline_tag=use.pipeline,
        tags=sorted({"deberta-jax", config.model_type}),
        base_model=_hub_name(base),
        datasets=[data] if data else None,
        metrics=sorted({metric for metrics in record.results.values() for metric in metrics}) or None,
        model_name=options.name.rpartition("/")[2],
        eval_results=results or None,
    ).to_yaml()


def _hub_name(source: Any) -> str | None:
    """Returns the hub's name of a model, without its revision; None for a folder."""
    text = str(source or "")
    match = NAME.fullmatch(text)
    return match[1] if match and not Path(text).exists() else None


def _dataset(train: Any) -> str | None:
    """Returns the name of a published data set: of hf:NAME, tfds:NAME or NAME:FILE; None for local data."""
    text = str(train or "")
    kind, colon, rest = text.partition(":")
    if not colon or Path(text).exists():
        return None
    if kind not in ("hf", "tfds"):
        return kind if re.fullmatch(r"\w[\w-]*(/[\w.-]+)?", kind) else None
    is_folder = kind == "hf" and (rest[:1] in (".", "/", "~") or Path(rest.partition("@")[0]).is_dir())
    name = re.match(r"[\w./-]+", rest)
    return name[0] if name and not is_folder else None


def _public(value: Any) -> str:
    """Returns a setting without the folders of the author's machine."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_public, value))
    text = str(value)
    if _hub_name(text) or (text.startswith(("hf:", "tfds:")) and _dataset(text)):
        return text
    prefix, colon, path = text.rpartition(":")
    return prefix + colon + Path(path).name if "/" in path or "\\" in path else text


def _cell(value: Any) -> str:
    return message_text(_public(value)).replace("|", "\\|")


# ---------------------------------------------------------------------------------------------------------- text


def _description(config: DebertaConfig, params: Params, use: _Use, record: RunRecord, options: CardOptions) -> str:
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    family = "DeBERTa" if config.model_type == "deberta" else config.model_type.upper()
    lines = [
        f"A {family} with {config.num_hidden_layers} layers, hidden size {config.hidden_size} and {count:,} parameters."
        f" It {use.words}."
    ]
    if "model" in record.settings and not record.settings.get("random-weights"):
        lines.append(f"It was fine-tuned from `{_cell(record.settings['model'])}`.")
    if config.label_names:
        lines.append("Classes: " + ", ".join(f"`{message_text(name)}`" for name in config.label_names) + ".")
    if options.license is None:
        lines.append(_NO_LICENSE)
    return "\n".join(lines)


def _usage(config: DebertaConfig, use: _Use, options: CardOptions) -> str:
    name = options.name
    if options.library == "transformers":
        code = (
            f"from transformers import AutoTokenizer, {use.transformers}\n\n"
            f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n'
            f'model = {use.transformers}.from_pretrained("{name}")\n'
            'outputs = model(**tokenizer("A text.", return_tensors="pt"))'
        )
        note = ""
        if use.pipeline == "fill-mask" and config.uses_enhanced_mask_decoder:
            note = (
                "\n\ntransformers has no enhanced mask decoder, with which this model was trained: its predictions of "
                "masked tokens differ from those of deberta-jax."
            )
        ours = f'from deberta_jax.convert import load_pytorch\n\nconfig, params = load_pytorch("{name}")'
        return f"## Use\n\n```python\n{code}\n```\n\nIn JAX:\n\n```python\n{ours}\n```{note}"
    code = (
        "from huggingface_hub import snapshot_download\n"
        "from deberta_jax import Tokenizer, load_pretrained\n\n"
        f'folder = snapshot_download("{name}")\n'
        "config, params = load_pretrained(folder)\n"
        "tokenizer = Tokenizer.from_folder(folder)"
    )
    return f"## Use\n\n```python\n{code}\n```\n\n`deberta-jax export FOLDER DESTINATION` writes it for transformers."


def _scores(record: RunRecord) -> str:
    rows = [
        f"| {_cell(split)} | {_cell(metric)} | {value:.4f} |"
        for split, metrics in record.results.items()
        for metric, value in metrics.items()
    ]
    if not rows:
        return ""
    seed = record.settings.get("seed")
    lines = ["## Scores", "", "| split | metric | value |", "|---|---|---|", *rows, ""]
    if seed is not None:
        lines.append(f"The seed is {seed}.")
    if record.mean is not None:
        margin = "" if record.mean.margin is None else f" ± {record.mean.margin:.4f} (95 % confidence interval)"
        lines.append(
            f"This is the best of {len(record.mean.seeds)} runs by {record.mean.metric} on {record.mean.split}; their "
            f"mean is {record.mean.mean:.4f}{margin}, with the seeds {', '.join(map(str, record.mean.seeds))}."
        )
    return "\n".join(lines).rstrip()


def _training(record: RunRecord) -> str:
    known = {
        name: value for name, value in record.settings.items() if name != "epochs" or "steps" not in record.settings
    }
    given = {name: known[name] for name in _SETTINGS if name in known and (known[name] or name in ("seed", "steps"))}
    if not given:
        return ""
    rows = [f"| {name} | {_cell(value)} |" for name, value in given.items()]
    return "\n".join(["## Data and settings", "", "| setting | value |", "|---|---|", *rows])


def _limits(config: DebertaConfig, use: _Use, record: RunRecord) -> str:
    limits = []
    if config.reads_positions(masked_lm=use.pipeline == "fill-mask"):
        limits.append(f"It reads at most {config.max_tokens} tokens.")
    if length := record.settings.get("max-length", record.settings.get("sequence-length")):
        limits.append(f"In training, texts were cut to {length} tokens.")
    if record.results:
        limits.append(f"It was evaluated only on the splits above ({', '.join(record.results)}).")
    if record.results and record.mean is None:
        limits.append("The scores are those of one run.")
    return "\n".join(["## Limits", "", *(f"* {limit}" for limit in limits)]) if limits else ""


def _versions(record: RunRecord) -> str:
    here = {name: version_of(name) for name in _LIBRARIES}
    trained = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    written = ", ".join(f"{name} {version}" for name, version in here.items())
    lines = [f"Trained with {trained}."] if trained else []
    return "\n".join(["## Versions", "", *lines, f"Files written with {written}."])


def revised_card(card: str, options: CardOptions) -> str:
    """Returns a model card that this library wrote for a folder, with the name and license of a repository."""
    from huggingface_hub import ModelCard

    title = re.search(r"(?m)^# (.+)$", card)
    if title is not None:
        old, short = title[1], options.name.rpartition("/")[2]
        card = card.replace(f'("{old}")', f'("{options.name}")').replace(f"\n# {old}\n", f"\n# {short}\n")
        card = card.replace(f"\n- name: {old}\n", f"\n- name: {short}\n")
    revised: Any = ModelCard(card)
    if options.license is not None:
        revised.data.license = options.license
        revised.text = revised.text.replace(f"\n{_NO_LICENSE}", "")
    if options.languages:
        revised.data.language = list(options.languages)
    return str(revised)
