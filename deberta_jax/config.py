"""DebertaConfig: all that fixes a model's shape and arithmetic. JSON quirks are resolved here and nowhere else."""

import dataclasses
import difflib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, get_args

from .errors import UserError
from .released import RELEASED

PositionTerm = Literal["c2p", "p2c"]
# Forms of the masked LM head. emd: behind the enhanced mask decoder, the official one of every DeBERTa. bert: straight
# on the last hidden state, which is also transformers' legacy=False. legacy: as bert, under the names of transformers'
# default head, `cls.predictions`.
MaskedLMForm = Literal["emd", "bert", "legacy"]
# Whose parameter names and config.json a model has: transformers' "deberta" and "deberta-v2", and the baselines of the
# papers, which are the same encoder without relative attention.
ModelType = Literal["deberta", "bert", "roberta", "electra"]

# Fields of published config.json files that say nothing about the model (transformers' bookkeeping, of any version).
_IGNORED = frozenset(
    "_name_or_path add_cross_attention architectures attn_implementation bos_token_id chunk_size_feed_forward "
    "cross_attention_hidden_size decoder_start_token_id dtype eos_token_id finetuning_task "
    "gradient_checkpointing is_decoder is_encoder_decoder legacy max_length num_choices output_attentions "
    "output_hidden_states output_past pooler_hidden_size prefix problem_type pruned_heads "
    "return_dict sep_token_id summary_activation summary_first_dropout summary_last_dropout summary_type "
    "summary_use_proj talking_head task_specific_params tie_encoder_decoder tie_word_embeddings "
    "tokenizer_class torch_dtype torchscript transformers_version use_bfloat16 use_return_dict label2id".split()
)
# The same of BERT, RoBERTa and ELECTRA.
_IGNORED_OF_BASELINES = frozenset(
    "_num_labels directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head "
    "pooler_type use_cache".split()
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DebertaConfig:
    """Shape and arithmetic of one DeBERTa encoder and its heads. Field names are the published ones.

    Defaults are those of the original code for a key that a `config.json` leaves out, except that an encoder with
    `relative_attention` must say its `pos_att_type`. Build a released model with `DebertaConfig.named`, read a
    published file with `DebertaConfig.from_json`. With a `model_type` of "bert", "roberta" or "electra" it describes
    that encoder, and `BASELINES` says what it cannot be without.

    Raises:
      ValueError: when built with values that do not fit together; the message says which, what is allowed and what
        to do.
    """

    vocab_size: int
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    attention_head_size: int = 0  # 0: hidden_size / num_attention_heads
    intermediate_size: int = 3072
    hidden_act: str = "gelu"  # the exact, erf form; "gelu_tanh", "relu", "tanh" are the others
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-7
    embedding_size: int = 0  # 0: hidden_size; otherwise embeddings are projected, without bias
    position_biased_input: bool = True  # add absolute positions to the input (BERT); False: EMD adds them at the end
    relative_attention: bool = False
    pos_att_type: tuple[PositionTerm, ...] = ()
    max_relative_positions: int = -1  # < 1: max_position_embeddings
    position_buckets: int = -1  # < 1: no log buckets, one row per distance
    norm_rel_ebd: Literal["none", "layer_norm"] = "none"
    share_att_key: bool = False
    conv_kernel_size: int = 0
    conv_act: str = "tanh"
    conv_groups: int = 1
    mlm_head: MaskedLMForm | None = None  # None: emd; with position_biased_input, bert
    pooler_dropout: float = 0.0
    pooler_hidden_act: str = "gelu"
    cls_dropout: float | None = None  # None: hidden_dropout_prob
    num_labels: int = 2
    label_names: tuple[str, ...] = ()  # of the classes, where known
    model_type: ModelType = "deberta"

    def __post_init__(self) -> None:
        if self.attention_head_size == 0 and self.num_attention_heads > 0:
            if self.hidden_size % self.num_attention_heads:
                raise UserError(
                    f"hidden_size {self.hidden_size} does not divide into num_attention_heads "
                    f"{self.num_attention_heads}; give a multiple, or set attention_head_size"
                )
            object.__setattr__(self, "attention_head_size", self.hidden_size // self.num_attention_heads)
        if self.embedding_size == 0:
            object.__setattr__(self, "embedding_size", self.hidden_size)
        if self.mlm_head is None:
            object.__setattr__(self, "mlm_head", "bert" if self.position_biased_input else "emd")
        object.__setattr__(self, "pos_att_type", _position_terms(self.pos_att_type))
        object.__setattr__(self, "label_names", tuple(self.label_names))
        self._validate()

    def _validate(self) -> None:
        self._validate_numbers()
        for name, allowed in (
            *((name, ACTIVATIONS) for name in ("hidden_act", "conv_act", "pooler_hidden_act")),
            ("norm_rel_ebd", ("none", "layer_norm")),
            ("mlm_head", get_args(MaskedLMForm)),
            ("model_type", get_args(ModelType)),
        ):
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")
        self._validate_baseline()
        if self.mlm_head == "emd" and self.position_biased_input:
            raise UserError(
                "mlm_head 'emd' adds absolute positions at the end, but position_biased_input already has them in the "
                "input; set mlm_head to 'bert' or 'legacy', or position_biased_input to false"
            )
        if self.relative_attention and not self.pos_att_type:
            raise UserError(
                "relative_attention is true but pos_att_type is empty; give 'c2p|p2c', 'c2p' or 'p2c', "
                "or set relative_attention to false"
            )
        if self.label_names and len(self.label_names) != self.num_labels:
            raise UserError(f"num_labels is {self.num_labels}, but there are {len(self.label_names)} label names")
        if self.hidden_size % self.conv_groups:
            raise UserError(f"hidden_size {self.hidden_size} does not divide into conv_groups {self.conv_groups}")
        if self.conv_kernel_size < 0 or (self.conv_kernel_size and self.conv_kernel_size % 2 == 0):
            raise UserError(f"conv_kernel_size is {self.conv_kernel_size}; it must be 0 (no convolution) or odd")
        if self.relative_attention and self.position_buckets > 0 and self.relative_reach <= self.position_buckets // 2:
            raise UserError(
                f"position_buckets {self.position_buckets} needs max_relative_positions above "
                f"{self.position_buckets // 2}, not {self.relative_reach}"
            )

    def _validate_baseline(self) -> None:
        fixed = BASELINES.get(self.model_type, {})
        if self.model_type in ("bert", "roberta"):
            fixed = {**fixed, "embedding_size": self.hidden_size}
        for name, value in fixed.items():
            if getattr(self, name) != value:
                raise UserError(
                    f"{name} is {getattr(self, name)!r}; with model_type {self.model_type!r} it must be {value!r}"
                )

    def _validate_numbers(self) -> None:
        sizes = (
            "vocab_size hidden_size num_hidden_layers num_attention_heads attention_head_size embedding_size "
            "intermediate_size max_position_embeddings conv_groups num_labels"
        )
        for name, least in (*((size, 1) for size in sizes.split()), ("type_vocab_size", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("initializer_range", "layer_norm_eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}; it must be positive and finite")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "pooler_dropout", "cls_dropout"):
            rate = getattr(self, name)
            if rate is not None and not 0 <= rate < 1:
                raise UserError(f"{name} is {rate}; it must be at least 0 and below 1")

    @property
    def relative_reach(self) -> int:
        """Distances at and beyond this are all alike."""
        return self.max_relative_positions if self.max_relative_positions > 0 else self.max_position_embeddings

    @property
    def att_span(self) -> int:
        """Half the rows of the relative table."""
        return self.position_buckets if self.position_buckets > 0 else self.relative_reach

    @property
    def classifier_dropout(self) -> float:
        return self.hidden_dropout_prob if self.cls_dropout is None else self.cls_dropout

    @property
    def uses_enhanced_mask_decoder(self) -> bool:
        """Absolute positions that were kept out of the input enter in front of the masked LM head."""
        return self.mlm_head == "emd"

    @property
    def pad_token_id(self) -> int:
        return 1 if self.model_type == "roberta" else 0

    @property
    def position_offset(self) -> int:
        """Row of the position table that a sequence's first token reads.

        RoBERTa's first rows belong to padding and what is before it, and its real tokens alone are counted.
        """
        return self.pad_token_id + 1 if self.model_type == "roberta" else 0

    @property
    def projects_normalized_embeddings(self) -> bool:
        """Where embedding_size is another than hidden_size: ELECTRA projects behind the LayerNorm, with a bias.

        DeBERTa projects in front of it, without one.
        """
        return self.model_type == "electra"

    @property
    def normalized_embedding_size(self) -> int:
        """Width of the embeddings where they are normalized, and where SiFT disturbs them."""
        return self.embedding_size if self.projects_normalized_embeddings else self.hidden_size

    @property
    def rtd_reads_first_token(self) -> bool:
        """DeBERTa's replaced-token head normalizes the sum with the first token; ELECTRA's reads the token alone."""
        return self.model_type != "electra"

    @classmethod
    def named(cls, name: str) -> Self:
        """The configuration of a released model, such as "deberta-v3-small". Raises ValueError with the names."""
        if name not in RELEASED:
            raise UserError(
                f"no released model is called {name!r};{_nearest(name, RELEASED)} all: {', '.join(RELEASED)}"
            )
        return cls(**RELEASED[name])

    @classmethod
    def from_json(cls, source: str | os.PathLike[str] | Mapping[str, Any]) -> Self:
        """Reads the `config.json` of Microsoft or of transformers, or our own: a path, a folder or the parsed dict.

        Its `model_type` is deberta, deberta-v2, bert, roberta or electra; without one it is a DeBERTa.

        Raises:
          FileNotFoundError: no such file.
          ValueError: not JSON, another encoder, an unknown field (with the nearest known one), or values that do not
            fit together.
        """
        if isinstance(source, Mapping):
            return cls._from_mapping(dict(source), where="the configuration")
        path = Path(source)
        if path.is_dir():
            path = path / "config.json"
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise UserError(f"{path} holds a {type(fields).__name__}, not a table of fields")
        return cls._from_mapping(fields, where=str(path))

    @classmethod
    def _from_mapping(cls, fields: dict[str, Any], *, where: str) -> Self:
        if "discriminator" in fields or "generator" in fields:
            raise UserError(f"{where} describes a generator and a discriminator; read it with RTDConfig.from_json")
        fields = _of_model_type(fields, where)
        labels, pooling, label_names = fields.pop("id2label", None) or {}, fields.pop("pooling", None) or {}, ()
        if not isinstance(labels, Mapping) or not isinstance(pooling, Mapping):
            raise UserError(f"{where}: id2label and pooling must be tables")
        if labels:
            names = tuple(str(name) for _, name in sorted(labels.items(), key=lambda item: int(item[0])))
            fields.setdefault("num_labels", len(names))
            if names != tuple(f"LABEL_{index}" for index in range(len(names))):  # transformers' placeholder
                label_names = names
        fields.setdefault("pooler_dropout", pooling.get("dropout", 0.0))
        fields.setdefault("pooler_hidden_act", pooling.get("hidden_act", "gelu"))
        known = {field.name for field in dataclasses.fields(cls)} - {"label_names"}
        fields = {key: value for key, value in fields.items() if key not in _IGNORED}
        unknown = sorted(fields.keys() - known)
        if unknown:
            hints = " ".join(f"{key!r}.{_nearest(key, known)}" for key in unknown)
            raise UserError(f"{where}: unknown field {hints} Remove it, or correct its name")
        if fields.get("vocab_size") is None:
            raise UserError(f"{where}: vocab_size is missing")
        if fields.get("hidden_act") == "gelu_pytorch_tanh":  # transformers' name for it
            fields["hidden_act"] = "gelu_tanh"
        _check_types(fields, where)
        if "position_buckets" in fields and not fields.get("relative_attention", False):
            fields.pop("position_buckets")  # the original's BERT baseline names buckets that it never uses
        return cls(**fields, label_names=label_names)

    def to_json(self) -> dict[str, Any]:
        """A dict that `from_json` reads back to an equal config, and that transformers reads too."""
        fields = dataclasses.asdict(self)
        fields["pos_att_type"] = "|".join(self.pos_att_type)
        names = fields.pop("label_names")
        if names:
            fields |= {"id2label": dict(enumerate(names)), "label2id": {n: index for index, n in enumerate(names)}}
        if self.model_type == "deberta":
            fields["model_type"] = "deberta-v2"
        else:
            fields["classifier_dropout"] = self.cls_dropout  # as transformers calls it there
        return fields

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated anew."""
        if "hidden_size" in changes:
            changes = {"attention_head_size": 0, "embedding_size": 0, **changes}
        if "num_attention_heads" in changes:
            changes = {"attention_head_size": 0, **changes}
        if "position_biased_input" in changes:
            changes = {"mlm_head": None, **changes}
        return dataclasses.replace(self, **changes)


ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "tanh")


def _of_model_type(fields: dict[str, Any], where: str) -> dict[str, Any]:
    """The fields with `model_type` as ours, and for a baseline with what its files call otherwise or leave unsaid."""
    kind = fields.get("model_type") or "deberta"
    if kind == "deberta-v2":
        kind = "deberta"
    if kind not in get_args(ModelType):
        raise UserError(
            f"{where}: model_type is {kind!r}; encoders that can be read are deberta, deberta-v2, bert, roberta and "
            "electra"
        )
    name, padding = {"deberta": ("DeBERTa", 0), "roberta": ("RoBERTa", 1)}.get(kind, (kind.upper(), 0))
    if any(fields.pop(field, None) not in (None, padding) for field in ("padding_idx", "pad_token_id")):
        raise UserError(f"{where}: the padding id must be {padding}, as in every {name}")
    if kind == "deberta":
        return fields | {"model_type": kind}
    for field, supported in (("position_embedding_type", "absolute"), ("is_decoder", False)):
        value = fields.pop(field, None)
        if value not in (None, supported):
            raise UserError(f"{where}: {field} is {value!r}; of {name} only {supported!r} can be read")
    fields = {key: value for key, value in fields.items() if key not in _IGNORED_OF_BASELINES}
    classifier_dropout = fields.pop("classifier_dropout", None)
    fields.setdefault("cls_dropout", classifier_dropout)
    fields = {**_UNSAID, **(_UNSAID_ELECTRA if kind == "electra" else {}), **BASELINES[kind], **fields}
    if kind != "bert":  # their classification heads drop out on either side of the dense layer
        dropout = fields["hidden_dropout_prob"] if fields["cls_dropout"] is None else fields["cls_dropout"]
        fields.setdefault("pooler_dropout", dropout)
    return fields


def _position_terms(value: Any) -> tuple[PositionTerm, ...]:
    terms = value.split("|") if isinstance(value, str) else value or ()
    if not isinstance(terms, list | tuple) or not all(isinstance(term, str) for term in terms):
        raise UserError(f"pos_att_type is {value!r}; it must be a text such as 'c2p|p2c', or a list of such terms")
    terms = sorted({term.strip().lower() for term in terms} - {"", "none"})
    unknown = [term for term in terms if term not in ("c2p", "p2c")]
    if unknown:
        raise UserError(
            f"pos_att_type has {', '.join(unknown)}; allowed are c2p, p2c and both ('c2p|p2c'); "
            "p2p never worked in the original code and no released model has it"
        )
    return tuple(terms)  # type: ignore[return-value]


def _check_types(fields: dict[str, Any], where: str) -> None:
    """Raises ValueError for a value that is not of its field's kind."""
    kinds = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,), "float | None": (int, float)}
    for field in dataclasses.fields(DebertaConfig):
        value = fields.get(field.name, field.default)
        kind = str(getattr(field.type, "__name__", field.type))
        if kind not in kinds or (kind == "float | None" and value is None):
            continue  # the others are checked when they are read
        if not isinstance(value, kinds[kind]) or (isinstance(value, bool) and kind != "bool"):
            raise UserError(f"{where}: {field.name} is {value!r}; it must be of type {kind}")


def _nearest(name: str, known: Any) -> str:
    match = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {match[0]!r}?" if match else ""


# The encoders of the papers' tables that are this one without relative attention, and what each cannot be without.
_PLAIN = {"relative_attention": False, "conv_kernel_size": 0, "position_biased_input": True, "mlm_head": "bert"}
BASELINES: dict[str, dict[str, Any]] = {
    "bert": {**_PLAIN, "pooler_hidden_act": "tanh"},
    "roberta": {**_PLAIN, "pooler_hidden_act": "tanh", "hidden_act": "gelu"},  # that of its masked LM head is fixed
    "electra": {**_PLAIN, "pooler_hidden_act": "gelu", "hidden_act": "gelu"},
}
# transformers' defaults of their config.json, where they differ from ours.
_UNSAID = {"type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.1}
_UNSAID_ELECTRA = {"embedding_size": 128, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}
