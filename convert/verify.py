"""Compares a PyTorch model in transformers with the same model here, layer by layer: `deberta-jax verify SRC`.

transformers reads the files itself, so the comparison covers the conversion as well as the arithmetic.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from deberta_jax import models
from deberta_jax.checkpoint import load_pretrained
from deberta_jax.config import DebertaConfig

from .baseline_names import TRANSFORMERS_CLASSES
from .from_pytorch import find_folder, load_pytorch
from .mapping import Params
from .quirks import ConversionError, shorten

TOLERANCE = 1e-4  # of the largest entry on real tokens
Inputs = dict[str, Any]  # NumPy arrays by the name of the argument
LENGTHS = (300, 40, 7, 1)  # tokens of the rows; 300 reach beyond the distances that have a bucket of their own
_FROM_WEIGHTS = ("mlm_head", "num_labels", "label_names")  # fields that the weights decide in `load_pytorch`


class Head(NamedTuple):
    """A head that both sides have: the parts it needs, the classes' names without their prefixes, its row's name."""

    parts: tuple[str, ...]
    suffix: str
    row: str
    suffix_here: str = ""  # where it is another


# The first whose parts are all there is compared. transformers has no class for Microsoft's token_proj.
_ENCODER_ONLY = Head((), "Model", "")
_HEADS = (
    Head(("mlm_head",), "ForMaskedLM", "masked LM logits"),
    _ENCODER_ONLY._replace(parts=("token_proj",)),
    Head(("pooler", "classifier"), "ForSequenceClassification", "classification logits"),
    Head(("classifier",), "ForTokenClassification", "token classification logits"),
    Head(("span_classifier",), "ForQuestionAnswering", "start and end logits"),
    _ENCODER_ONLY,
)
_DISCRIMINATOR = Head(
    ("rtd_head",), "ForPreTraining", "replaced token logits", "ForReplacedTokenDetection"
)  # ELECTRA's


class Difference(NamedTuple):
    """One row of the table, over real tokens only."""

    name: str
    largest: float  # magnitude in transformers' array
    difference: float  # the largest

    @property
    def agrees(self) -> bool:
        return self.difference <= TOLERANCE * self.largest  # false for NaN


@dataclasses.dataclass(frozen=True)
class VerifyConfig:
    """Compare a PyTorch model in transformers with the same model in deberta-jax, layer by layer."""

    source: tyro.conf.Positional[str]
    """Folder or hub name with config.json and *.safetensors or *.bin, which transformers can load."""
    converted: Path | None = None
    """Folder that `deberta-jax convert` wrote from it; the default converts it anew, in memory."""


def main(config: VerifyConfig) -> None:
    """Runs `deberta-jax verify`: prints a table.

    Raises:
      ConversionError: the two differ by more than TOLERANCE, PyTorch or transformers is not installed, transformers
        finds no weights for a part of the model, or `converted` is another model. Otherwise what `load_pytorch` and
        `load_pretrained` raise.
    """
    folder = find_folder(config.source)
    if config.converted is None:
        deberta, params = load_pytorch(folder)
    else:
        deberta, params = load_pretrained(config.converted)
        _refuse_another_model(folder, deberta, config.converted)
    rows = compare(folder, deberta, params)
    Console().print(_table(rows))
    wrong = [row for row in rows if not row.agrees]
    if wrong:
        raise ConversionError(
            f"{len(wrong)} of {len(rows)} rows differ by more than {TOLERANCE:g} of their largest entry; the first is "
            f"{wrong[0].name}, by {wrong[0].difference:.1e} of {wrong[0].largest:.1e}"
        )


def _refuse_another_model(folder: Path, config: DebertaConfig, converted: Path) -> None:
    theirs, ours = dataclasses.asdict(DebertaConfig.from_json(folder)), dataclasses.asdict(config)
    differing = [name for name in ours if name not in _FROM_WEIGHTS and theirs[name] != ours[name]]
    if differing:
        raise ConversionError(
            f"{converted} was not converted from {folder}: their configurations differ in {', '.join(differing)}"
        )


def compare(folder: Path, config: DebertaConfig, params: Params) -> list[Difference]:
    """The embeddings, every layer and the logits, of transformers' model in `folder` and of ours.

    transformers has no enhanced mask decoder and no replaced-token head: the masked LM head of a file that has one
    is compared on the last hidden state, and a discriminator without its head.

    Raises:
      ConversionError: as `main`, but for differences.
    """
    heads = (_DISCRIMINATOR, *_HEADS) if config.model_type == "electra" else _HEADS
    head = next(head for head in heads if set(head.parts) <= params.keys())
    inputs = make_inputs(config)
    theirs = run_transformers(folder, config, head, inputs)
    ours = run_ours(config, params, head, inputs)
    names = ["embeddings", *(f"layer {i + 1}" for i in range(config.num_hidden_layers))]
    names[-1] += " (last hidden state)"
    names += [head.row] if head.row else []
    real = inputs["attention_mask"].astype(bool)
    return [_difference(*row, real) for row in zip(names, theirs, ours, strict=True)]


def make_inputs(config: DebertaConfig) -> Inputs:
    """Random ids of rows of LENGTHS tokens, each as long as the model allows, padded right and left by turns."""
    limit = config.max_position_embeddings - config.position_offset
    if config.relative_attention:
        limit = min(limit, config.relative_reach)  # beyond it transformers does not clamp distances, the original does
    lengths = [min(length, limit) for length in LENGTHS]
    rng, shape = np.random.default_rng(0), (len(lengths), lengths[0])
    index = np.arange(shape[1])
    mask = np.stack(
        [index >= shape[1] - length if row % 2 else index < length for row, length in enumerate(lengths)]
    ).astype(np.int32)
    padding = config.pad_token_id  # RoBERTa in transformers knows padding by its id
    ids = np.where(mask, rng.integers(padding + 1, config.vocab_size, shape, np.int32), padding)
    types = rng.integers(0, max(config.type_vocab_size, 1), shape, np.int32)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def run_ours(config: DebertaConfig, params: Params, head: Head, inputs: Inputs) -> list[np.ndarray]:
    """Hidden states, the embeddings first, then the logits of the head, if there is one."""
    if config.uses_enhanced_mask_decoder:
        config = config.replace(mlm_head="bert")

    @jax.jit
    def run(params: Params) -> tuple[Any, Any]:
        encoder: Any = models.Deberta(config).apply({"params": params["deberta"]}, **inputs, output_hidden_states=True)
        model = getattr(models, "Deberta" + (head.suffix_here or head.suffix))(config) if head.row else None
        return encoder.hidden_states, model and model.apply({"params": params}, **inputs)

    with jax.default_matmul_precision("highest"):
        hidden_states, out = jax.device_get(run(params))
    return [*hidden_states, *([_logits(head, out)] if head.row else [])]


def run_transformers(folder: Path, config: DebertaConfig, head: Head, inputs: Inputs) -> list[np.ndarray]:
    """The same of transformers' model, which it reads from `folder` itself, in float32."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
        import transformers  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConversionError(
            f"verify runs transformers on PyTorch, and {error.name} is not installed; pip install torch transformers"
        ) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        fields, _ = transformers.PreTrainedConfig.get_config_dict(folder)
        version = TRANSFORMERS_CLASSES[fields.get("model_type", "deberta-v2")]
        options = {"add_pooling_layer": False} if not head.row and version in ("Bert", "Roberta") else {}
        fields |= {"legacy": config.mlm_head == "legacy", "num_labels": config.num_labels}
        model, info = getattr(transformers, version + head.suffix).from_pretrained(
            folder,
            config=getattr(transformers, version + "Config").from_dict(fields),
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # they are reported below, by name
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # whatever a file that it does not understand leads to
        reason = (str(error).splitlines() or ["no details"])[0]
        raise ConversionError(f"transformers cannot load {folder}: {type(error).__name__}: {reason}") from None
    random = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    if random:
        raise ConversionError(
            f"transformers' {type(model).__name__} finds nothing that fits in {folder} for {shorten(sorted(random))}; "
            "it would fill them with random numbers, so there is nothing to compare with"
        )
    with torch.no_grad():
        tensors = {name: torch.from_numpy(array).long() for name, array in inputs.items()}
        out = model.eval()(**tensors, output_hidden_states=True)
    return [*(state.numpy() for state in out.hidden_states), *([_logits(head, out)] if head.row else [])]


def _logits(head: Head, out: Any) -> np.ndarray:
    """[B, C], or of heads on every token [B, S, C]."""
    if hasattr(out, "start_logits"):
        return np.stack([out.start_logits, out.end_logits], axis=-1)
    logits = np.asarray(out.logits)
    return logits[..., None] if head is _DISCRIMINATOR else logits


def _difference(name: str, theirs: np.ndarray, ours: np.ndarray, real: np.ndarray) -> Difference:
    # Heads on the first token say nothing of a row that begins with padding.
    at = real if theirs.ndim == 3 else real[:, 0]
    theirs, ours = theirs[at], ours[at]
    return Difference(name, float(np.abs(theirs).max()), float(np.abs(theirs - ours).max()))


def _table(rows: list[Difference]) -> Table:
    caption = f"real tokens only; ok is a difference of at most {TOLERANCE:g} of the largest entry"
    table = Table("", "largest", "max |difference|", "relative", "", box=box.SIMPLE, caption=caption)
    for column in table.columns[1:4]:
        column.justify = "right"
    for row in rows:
        share = f"{row.difference / row.largest:.1e}" if row.largest else "-"
        numbers = (f"{row.largest:.4g}", f"{row.difference:.1e}", share)
        table.add_row(row.name, *numbers, "[green]ok" if row.agrees else "[bold red]differs")
    return table
