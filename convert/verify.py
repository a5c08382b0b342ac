"""Compares a PyTorch model in transformers with the same model in deberta-jax: `deberta-jax verify SOURCE`.

transformers reads the files itself, so the comparison covers the conversion as well as the arithmetic, layer by layer.
Only weights that it cannot find, under a prefix or in a file of another name, are handed to it under its names.
"""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
import tyro
from jaxtyping import Bool, Float, Int
from rich import box
from rich.table import Table
from rich.text import Text

from deberta_jax import models
from deberta_jax.checkpoint import load_pretrained
from deberta_jax.config import DebertaConfig
from deberta_jax.config_json import read_json_object
from deberta_jax.console import PlainConsole
from deberta_jax.errors import MissingPackageError
from deberta_jax.parameter_check import check_finite

from .baseline_names import TRANSFORMERS_CLASSES
from .containers import remove_prefixes
from .errors import ConversionError, first_line, shorten
from .from_pytorch import WEIGHT_FILES, find_config, find_folder, find_weights, load_pytorch, open_weights, read_config
from .mapping import Params

TOLERANCE = 1e-4  # relative to the largest magnitude on real tokens
LENGTHS = (300, 40, 7, 1)  # tokens of each example; 300 exceeds the distances that have a bucket of their own
_FROM_WEIGHTS = (
    "mlm_head",
    "token_projection",
    "num_labels",
    "label_names",
    "problem_type",
)  # configuration fields that the weights decide


class Inputs(NamedTuple):
    """Arguments of both models."""

    input_ids: Int[np.ndarray, "B S"]
    attention_mask: Int[np.ndarray, "B S"]
    token_type_ids: Int[np.ndarray, "B S"]


class Head(NamedTuple):
    """A head that transformers and deberta-jax both have.

    Attributes:
      parts: The parts of the parameter tree that it needs.
      row: Its name in the table (empty: only the encoder is compared).
      torch_suffix: Name of transformers' class without its prefix.
      flax_suffix: Name of the class in `deberta_jax.models` without its prefix.
    """

    parts: tuple[str, ...]
    row: str
    torch_suffix: str
    flax_suffix: str


_ENCODER_ONLY = Head((), "", "Model", "")
# The first head whose parts are all present is compared. transformers has no class for Microsoft's token_proj.
_HEADS = (
    Head(("mlm_head",), "masked LM logits", "ForMaskedLM", "ForMaskedLM"),
    _ENCODER_ONLY._replace(parts=("token_proj",)),
    Head(("pooler", "classifier"), "classification logits", "ForSequenceClassification", "ForSequenceClassification"),
    Head(("classifier",), "token classification logits", "ForTokenClassification", "ForTokenClassification"),
    Head(("span_classifier",), "start and end logits", "ForQuestionAnswering", "ForQuestionAnswering"),
    _ENCODER_ONLY,
)
_XLNET_SPANS = Head(("span_classifier",), "start and end logits", "ForQuestionAnsweringSimple", "ForQuestionAnswering")
_ELECTRA_DISCRIMINATOR = Head(("rtd_head",), "replaced token logits", "ForPreTraining", "ForReplacedTokenDetection")


class Difference(NamedTuple):
    """One row of the table, over real tokens only.

    Attributes:
      name: What is compared.
      largest: Largest magnitude in transformers' array.
      difference: Largest absolute difference.
    """

    name: str
    largest: float
    difference: float

    @property
    def agrees(self) -> bool:
        """Whether the difference is within TOLERANCE; false for NaN."""
        return self.difference <= TOLERANCE * self.largest


@dataclasses.dataclass(frozen=True)
class VerifyConfig:
    """Compare a PyTorch model in transformers with the same model in deberta-jax, layer by layer."""

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "microsoft/deberta-v3-small",
        "microsoft/deberta-v3-small --converted v3-small",
    )

    source: tyro.conf.Positional[str]
    """Folder or hub name with config.json and *.safetensors or *.bin that transformers can load"""
    converted: Path | None = None
    """Folder that `deberta-jax convert` wrote from it (default: convert it in memory)"""


def main(config: VerifyConfig) -> None:
    """Runs `deberta-jax verify`: prints a table.

    Raises:
      ConversionError: The two models differ by more than TOLERANCE, transformers finds no weights for a part of the
        model, or `converted` is a different model.
      MissingPackageError: PyTorch or transformers is not installed.
      UserError: A parameter is NaN or infinite.
      Exception: As `load_pytorch` and `load_pretrained`.
    """
    folder = find_folder(config.source)
    if config.converted is None:
        model_config, params = load_pytorch(folder)
    else:
        model_config, params = load_pretrained(config.converted)
        _check_same_model(folder, model_config, config.converted)
    check_finite(params, where=str(config.converted or folder))
    differences = compare(folder, model_config, params)
    PlainConsole().print(_table(differences))
    failures = [difference for difference in differences if not difference.agrees]
    if failures:
        name, largest, difference = failures[0]
        raise ConversionError(
            f"{len(failures)} of {len(differences)} rows differ by more than {TOLERANCE:g} of their largest entry; the "
            f"first is {name}, by {difference:.1e} of {largest:.1e}"
        )


def _check_same_model(folder: Path, config: DebertaConfig, converted: Path) -> None:
    """Raises if the configurations of the two folders differ."""
    source_fields, fields = (
        dataclasses.asdict(read_config(find_config(folder, find_weights(folder)))),
        dataclasses.asdict(config),
    )
    differing = [name for name in fields if name not in _FROM_WEIGHTS and source_fields[name] != fields[name]]
    if differing:
        raise ConversionError(
            f"{converted} was not converted from {folder}: their configurations differ in {', '.join(differing)}"
        )


def compare(folder: Path, config: DebertaConfig, params: Params) -> list[Difference]:
    """Compares embeddings, layers and logits of transformers' model in `folder` with those of deberta-jax's model.

    transformers has no enhanced mask decoder and no DeBERTa with a replaced token head. A masked LM head that was
    trained with that decoder is therefore compared on the last hidden state, and of a discriminator only the encoder.

    Raises:
      ConversionError: transformers cannot load the folder, or finds no weights for a part of the model.
      MissingPackageError: PyTorch or transformers is not installed.
    """
    own = {"electra": (_ELECTRA_DISCRIMINATOR,), "xlnet": (_XLNET_SPANS,)}
    heads = (*own.get(config.model_type, ()), *_HEADS)
    head = next(head for head in heads if set(head.parts) <= params.keys())
    inputs = make_inputs(config)
    expected = run_transformers(folder, config, head, inputs)
    actual = run_flax(config, params, head, inputs)
    names = ["embeddings", *(f"layer {i + 1}" for i in range(config.num_hidden_layers))]
    names[-1] += " (last hidden state)"
    names += [head.row] if head.row else []
    is_real = inputs.attention_mask.astype(bool)
    reads = -1 if config.classifies_last_token else 0
    return [_difference(*arrays, is_real, reads) for arrays in zip(names, expected, actual, strict=True)]


def make_inputs(config: DebertaConfig) -> Inputs:
    """Returns random ids of LENGTHS tokens, or as many as the model allows, padded on the right and left in turn."""
    limit = config.max_position_embeddings - config.position_offset
    if config.relative_attention:
        # The official code and deberta-jax clamp larger distances, transformers does not.
        limit = min(limit, config.relative_reach)
    lengths = [min(length, limit) for length in LENGTHS]
    rng, shape = np.random.default_rng(0), (len(lengths), lengths[0])
    index = np.arange(shape[1])
    mask = np.stack(
        [index >= shape[1] - length if i % 2 else index < length for i, length in enumerate(lengths)]
    ).astype(np.int32)
    padding = config.pad_token_id  # RoBERTa in transformers recognizes padding by its id
    ids = np.where(mask, rng.integers(padding + 1, config.vocab_size, shape, np.int32), padding)
    kinds = 3 if config.model_type == "xlnet" else max(config.type_vocab_size, 1)  # XLNet has no table of types
    types = rng.integers(0, kinds, shape, np.int32)
    return Inputs(ids, mask, types)


def run_flax(config: DebertaConfig, params: Params, head: Head, inputs: Inputs) -> list[Float[np.ndarray, "..."]]:
    """Returns deberta-jax's hidden states [B, S, D], embeddings first, and the head's logits if there is a head."""
    if config.uses_enhanced_mask_decoder:
        config = config.replace(mlm_head="bert")

    @jax.jit
    def run(params: Params) -> tuple[Any, Any]:
        arguments = inputs._asdict()
        encoder: Any = models.Deberta(config).apply(
            {"params": params["deberta"]}, **arguments, output_hidden_states=True
        )
        model = getattr(models, f"Deberta{head.flax_suffix}")(config) if head.row else None
        parts = {name: params[name] for name in ("deberta", *head.parts)}
        return encoder.hidden_states, model and model.apply({"params": parts}, **arguments)

    with jax.default_matmul_precision("highest"):
        hidden_states, output = jax.device_get(run(params))
    return [*hidden_states, *([_logits(head, output)] if head.row else [])]


def run_transformers(folder: Path, config: DebertaConfig, head: Head, inputs: Inputs) -> list[Float[np.ndarray, "..."]]:
    """Returns the arrays of `run_flax`, computed by transformers in float32 from the files in `folder`.

    Raises:
      ConversionError: transformers cannot load the folder, or finds no weights for a part of the model.
      MissingPackageError: PyTorch or transformers is not installed.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
        import transformers  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingPackageError(
            f"verify runs transformers on PyTorch, and {error.name} is not installed; pip install torch transformers"
        ) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        state = _state_that_transformers_cannot_find(folder, encoder_only=not head.row)
        fields = read_json_object(find_config(folder, find_weights(folder)))
        fields = fields.get("encoder_config", fields)  # of GLiNER
        version = TRANSFORMERS_CLASSES[fields.get("model_type", "deberta-v2")]
        options = {"add_pooling_layer": False} if not head.row and version in ("Bert", "Roberta") else {}
        fields |= {"legacy": config.mlm_head == "legacy", "num_labels": config.num_labels}
        model, loading = getattr(transformers, version + head.torch_suffix).from_pretrained(
            folder if state is None else None,
            state_dict=state and {key: torch.from_numpy(array) for key, array in state.items()},
            config=getattr(transformers, version + "Config").from_dict(fields),
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # reported below by name
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # transformers has no common class for the errors of a folder that it cannot read
        raise ConversionError(
            f"transformers cannot load {folder}: {type(error).__name__}: {first_line(error)}"
        ) from None
    randomized = {*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])}
    if randomized:
        raise ConversionError(
            f"transformers' {type(model).__name__} finds no fitting weights in {folder} for "
            f"{shorten(sorted(randomized))}; it would initialize them at random, so a comparison would be meaningless"
        )
    with torch.no_grad():
        tensors = {name: torch.from_numpy(array).long() for name, array in inputs._asdict().items()}
        output = model.eval()(**tensors, output_hidden_states=True)
    hidden_states = [state.numpy() for state in output.hidden_states]
    return [*hidden_states, *([_logits(head, output)] if head.row else [])]


def _state_that_transformers_cannot_find(folder: Path, *, encoder_only: bool) -> dict[str, np.ndarray] | None:
    """Returns the weights of a folder if their names have a prefix or their file another name, else None.

    transformers reads every other folder itself, so that a mistake of `open_weights` cannot hide.
    """
    weights = find_weights(folder)
    saved = open_weights(weights)
    readers = remove_prefixes(saved)
    readable = weights.name in WEIGHT_FILES and (folder / "config.json").is_file()
    if readable and readers.keys() == saved.keys():
        return None
    readers = remove_prefixes(saved, encoder_only=True) if encoder_only else readers
    return {key: np.array(read(), np.float32) for key, read in readers.items()}


def _logits(head: Head, output: Any) -> Float[np.ndarray, "B C"] | Float[np.ndarray, "B S C"]:
    """Returns the logits of either model's output: for each example or, of token-level heads, for each token."""
    if hasattr(output, "start_logits"):
        return np.stack([output.start_logits, output.end_logits], axis=-1)
    logits = np.asarray(output.logits)
    return logits[..., None] if head is _ELECTRA_DISCRIMINATOR else logits


def _difference(
    name: str,
    expected: Float[np.ndarray, "B *shape"],
    actual: Float[np.ndarray, "B *shape"],
    is_real: Bool[np.ndarray, "B S"],
    reads: int,
) -> Difference:
    # A head that reads the first token has no meaningful logits for an example that begins with padding. transformers'
    # XLNet reads the last one.
    compared = is_real if expected.ndim == 3 else is_real[:, reads]
    expected, actual = expected[compared], actual[compared]
    return Difference(name, float(np.abs(expected).max()), float(np.abs(expected - actual).max()))


def _table(differences: list[Difference]) -> Table:
    caption = f"real tokens only; ok: the difference is at most {TOLERANCE:g} of the largest entry"
    table = Table("", "largest", "max |difference|", "relative", "", box=box.SIMPLE, caption=caption)
    for column in table.columns[1:4]:
        column.justify = "right"
    for row in differences:
        relative = f"{row.difference / row.largest:.1e}" if row.largest else "-"
        numbers = (f"{row.largest:.4g}", f"{row.difference:.1e}", relative)
        table.add_row(row.name, *numbers, Text("ok", "green") if row.agrees else Text("differs", "bold red"))
    return table
