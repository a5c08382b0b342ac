"""DebertaConfig: everything that fixes a model's shape and arithmetic."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

from .config_json import FIXED_FIELDS, ModelType, config_fields, config_path, read_json_object
from .embedded import EMBEDDED, package_folder
from .errors import UserError
from .file_digests import DIGESTS_FILE, check_file, read_digests
from .released import RELEASED
from .terminal import list_names, shown_number
from .unknown_fields import nearest
from .xlnet_json import to_xlnet_fields

PositionTerm = Literal["c2p", "p2c"]
# Forms of the masked LM head. emd: after the enhanced mask decoder, the official form of every DeBERTa. bert: on the
# last hidden state, as transformers' legacy=False. legacy: as bert, under the parameter names of transformers' default
# head, `cls.predictions`.
MaskedLMForm = Literal["emd", "bert", "legacy"]
# What the logits of a classifier mean, under transformers' names: a softmax, a sigmoid of each, or numbers.
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
# Fields that version 0.1 did not have. They are written only with another value than this one, because checkpoints of
# interrupted runs contain the configuration and must stay equal to it.
_WRITTEN_IF_SET = {"problem_type": None, "token_projection": False}
_LARGEST_FLOAT32 = 3.4028234663852886e38
ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "tanh")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DebertaConfig:
    """Shape and arithmetic of one DeBERTa encoder and its heads. Field names are the published ones.

    Build a released model with `DebertaConfig.named("deberta-v3-small")`, or read a published file with
    `DebertaConfig.from_json`. Defaults are those of the original code for keys missing in a `config.json`, except
    that `pos_att_type` is required with `relative_attention`. With `model_type` "bert", "roberta", "electra" or "xlnet"
    it describes one of the papers' baselines; `config_json.FIXED_FIELDS` lists the fields which that fixes.

    Raises:
      UserError: values that do not fit together; the message has the field, what is allowed and what to do.
    """

    vocab_size: int
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    attention_head_size: int = 0  # 0 means hidden_size / num_attention_heads
    intermediate_size: int = 3072
    hidden_act: str = "gelu"  # one of ACTIVATIONS; "gelu" is the exact form with erf
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-7
    embedding_size: int = 0  # 0 means hidden_size; embeddings of another size are projected to hidden_size
    position_biased_input: bool = True  # add absolute positions to the input (as BERT), not in the mask decoder (EMD)
    relative_attention: bool = False
    pos_att_type: tuple[PositionTerm, ...] = ()
    max_relative_positions: int = -1  # below 1 means max_position_embeddings
    position_buckets: int = -1  # below 1 means one row of the relative table per distance, without log buckets
    norm_rel_ebd: Literal["none", "layer_norm"] = "none"
    share_att_key: bool = False
    conv_kernel_size: int = 0  # 0 means no convolution layer
    conv_act: str = "tanh"
    conv_groups: int = 1
    mlm_head: MaskedLMForm | None = None  # None means "bert" with position_biased_input, else "emd"
    pooler_dropout: float = 0.0
    pooler_hidden_act: str = "gelu"
    cls_dropout: float | None = None  # None means hidden_dropout_prob
    num_labels: int = 2
    label_names: tuple[str, ...] = ()  # names of the classes; empty if unknown
    problem_type: ProblemType | None = None  # None: transformers' rule, a sigmoid of one logit and a softmax of several
    token_projection: bool = False  # token classification has a dense layer before its classifier, as Microsoft's NER
    model_type: ModelType = "deberta"

    def __post_init__(self) -> None:
        if self.attention_head_size == 0 and self.num_attention_heads > 0:
            if self.hidden_size % self.num_attention_heads:
                raise UserError(
                    f"hidden_size {self.hidden_size} is not divisible by num_attention_heads "
                    f"{self.num_attention_heads}; use a multiple of it, or set attention_head_size"
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
            ("problem_type", (None, *get_args(ProblemType))),
            ("model_type", get_args(ModelType)),
        ):
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(map(str, allowed))}")
        self._validate_baseline()
        if self.mlm_head == "emd" and self.position_biased_input:
            raise UserError(
                "mlm_head 'emd' adds absolute positions at the end, but position_biased_input already adds them to the "
                "input; set mlm_head to 'bert' or 'legacy', or position_biased_input to false"
            )
        if self.relative_attention and not self.pos_att_type:
            raise UserError(
                "relative_attention is true but pos_att_type is empty; give 'c2p|p2c', 'c2p' or 'p2c', "
                "or set relative_attention to false"
            )
        if self.label_names and len(self.label_names) != self.num_labels:
            raise UserError(
                f"num_labels is {self.num_labels}, but there are {len(self.label_names)} label names; give one name "
                "for each class, or none"
            )
        if self.hidden_size % self.conv_groups:
            raise UserError(
                f"hidden_size {self.hidden_size} is not divisible by conv_groups {self.conv_groups}; use a divisor"
            )
        if self.conv_kernel_size < 0 or (self.conv_kernel_size and self.conv_kernel_size % 2 == 0):
            raise UserError(f"conv_kernel_size is {self.conv_kernel_size}; it must be 0 (no convolution) or odd")
        if self.relative_attention and self.position_buckets > 0 and self.relative_reach <= self.position_buckets // 2:
            raise UserError(
                f"max_relative_positions is {self.relative_reach}; with position_buckets {self.position_buckets} it "
                f"must be above {self.position_buckets // 2}"
            )

    def _validate_baseline(self) -> None:
        fixed = FIXED_FIELDS.get(self.model_type, {})
        if self.model_type in ("bert", "roberta", "xlnet"):
            fixed = {**fixed, "embedding_size": self.hidden_size}
        if self.model_type == "xlnet":
            fixed = {**fixed, "attention_probs_dropout_prob": self.hidden_dropout_prob}  # it has one rate
            if self.hidden_size % 2:
                raise UserError(
                    f"hidden_size is {self.hidden_size}; XLNet needs an even number, for a sine and a cosine of each "
                    "frequency"
                )
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
            value = getattr(self, name)
            if not 0 < value <= _LARGEST_FLOAT32:
                raise UserError(f"{name} is {shown_number(value)}; it must be positive and finite in 32 bits")
            object.__setattr__(self, name, float(value))  # JAX takes a whole number for an int32
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "pooler_dropout", "cls_dropout"):
            rate = getattr(self, name)
            if rate is not None and not 0 <= rate < 1:
                raise UserError(f"{name} is {rate}; it must be at least 0 and below 1")

    @property
    def relative_reach(self) -> int:
        """Largest relative distance that is told apart: all distances from here on share one row."""
        return self.max_relative_positions if self.max_relative_positions > 0 else self.max_position_embeddings

    @property
    def att_span(self) -> int:
        """Half the number of rows of the relative table."""
        return self.position_buckets if self.position_buckets > 0 else self.relative_reach

    @property
    def classifier_dropout(self) -> float:
        """Dropout rate in front of a classifier."""
        return self.hidden_dropout_prob if self.cls_dropout is None else self.cls_dropout

    @property
    def uses_enhanced_mask_decoder(self) -> bool:
        """Whether absolute positions, left out of the input, are added by a decoder in front of the masked LM head."""
        return self.mlm_head == "emd"

    @property
    def pad_token_id(self) -> int:
        """Id of the padding token."""
        return {"roberta": 1, "xlnet": 5}.get(self.model_type, 0)

    @property
    def position_offset(self) -> int:
        """Row of the position table for the first token of a sequence.

        In RoBERTa the rows up to the padding id are reserved, and padding tokens are not counted.
        """
        return self.pad_token_id + 1 if self.model_type == "roberta" else 0

    @property
    def max_tokens(self) -> int:
        """Number of tokens of a sequence, without padding, for which there are absolute positions."""
        return self.max_position_embeddings - self.position_offset

    def reads_positions(self, *, masked_lm: bool = False) -> bool:
        """Whether a model reads the table of absolute positions: at its input, or in the enhanced mask decoder.

        Args:
          masked_lm: the model predicts masked tokens, and so may have that decoder.
        """
        return self.position_biased_input or (masked_lm and self.uses_enhanced_mask_decoder)

    @property
    def projects_normalized_embeddings(self) -> bool:
        """Whether embeddings of another size than hidden_size are projected after the LayerNorm, with a bias.

        ELECTRA does so; DeBERTa projects before the LayerNorm, without a bias.
        """
        return self.model_type == "electra"

    @property
    def normalized_embedding_size(self) -> int:
        """Size of the embeddings where LayerNorm normalizes them and SiFT perturbs them."""
        return self.embedding_size if self.projects_normalized_embeddings else self.hidden_size

    @property
    def is_multi_label(self) -> bool:
        """Whether any number of classes applies to a text, so that each has a sigmoid of its own."""
        return self.problem_type == "multi_label_classification"

    @property
    def classifies_last_token(self) -> bool:
        """Whether the classifier of a text reads its last token, as XLNet's does, and not its first."""
        return self.model_type == "xlnet"

    @property
    def reads_token_types(self) -> bool:
        """Whether a model reads the types of tokens, by a table of several or, as XLNet does, in its attention."""
        return self.type_vocab_size > 1 or self.model_type == "xlnet"

    @property
    def token_dropout(self) -> float:
        """Dropout rate in front of a token classifier: 0 for XLNet, whose encoder ends with dropout."""
        return 0.0 if self.model_type == "xlnet" else self.classifier_dropout

    @property
    def rtd_reads_first_token(self) -> bool:
        """Whether the replaced-token head normalizes the sum of a token and the first token.

        DeBERTa's does; ELECTRA's reads the token alone.
        """
        return self.model_type != "electra"

    @classmethod
    def named(cls, name: str) -> Self:
        """Returns the configuration of a released model, such as "deberta-v3-small", or of one in the package.

        Raises:
          UserError: no model has this name; the message lists all names.
        """
        if name in EMBEDDED:
            return cls.from_json(package_folder(name) / "discriminator" / "config.json")
        if name not in RELEASED:
            known = (*RELEASED, *EMBEDDED)
            raise UserError(
                f"no released model is called {name!r}.{nearest(name, known)} The released models are "
                f"{', '.join(known)}"
            )
        return cls(**RELEASED[name])

    @classmethod
    def from_json(cls, source: str | os.PathLike[str] | Mapping[str, Any]) -> Self:
        """Reads the `config.json` of Microsoft or of transformers, or one of ours.

        Args:
          source: a file, a folder with a config.json, or the parsed dict. Its `model_type` is deberta, deberta-v2,
            bert, roberta, electra or xlnet (default: deberta). Other unknown fields are listed in one warning of the
            logger "deberta_jax" and not kept.

        Raises:
          FileNotFoundError: there is no such file.
          UserError: it is not JSON, has another model type, quantized weights, an unknown field that looks like a known
            one, or values that do not fit together; or it is not the one that `save_pretrained` wrote.
        """
        if isinstance(source, Mapping):
            return cls(**config_fields(source, dataclasses.fields(cls), where="the configuration"))
        path = config_path(source)
        config = cls(**config_fields(read_json_object(path), dataclasses.fields(cls), where=str(path)))
        check_file(path.parent, path.name, read_digests(path.parent / DIGESTS_FILE))
        return config

    def to_json(self) -> dict[str, Any]:
        """Returns a dict from which `from_json` reads an equal configuration, and which transformers reads as well."""
        fields = dataclasses.asdict(self)
        fields["pos_att_type"] = "|".join(self.pos_att_type)
        for name, default in _WRITTEN_IF_SET.items():
            if fields[name] == default:
                del fields[name]
        names = fields.pop("label_names")
        if names:
            fields |= {
                "id2label": dict(enumerate(names)),
                "label2id": {name: index for index, name in enumerate(names)},
            }
        if self.model_type == "deberta":
            fields["model_type"] = "deberta-v2"
        elif self.model_type == "xlnet":
            fixed = FIXED_FIELDS[self.model_type]
            fields = to_xlnet_fields(fields, fixed=fixed, classifier_dropout=self.classifier_dropout)
        else:
            fields["classifier_dropout"] = self.cls_dropout  # transformers' name for it
        return fields

    def replace(self, **changes: Any) -> Self:
        """Returns a validated copy with some fields changed.

        Fields with a derived default are derived again, even if they were set explicitly before, unless they are
        among the changes: `hidden_size` resets `attention_head_size` and `embedding_size`, `num_attention_heads`
        resets `attention_head_size`, `position_biased_input` resets `mlm_head`, and another `num_labels` resets
        `label_names`, so that a model of named classes can be opened with another head.

        Raises:
          UserError: values that do not fit together.
        """
        if "hidden_size" in changes:
            changes = {"attention_head_size": 0, "embedding_size": 0, **changes}
        if "num_attention_heads" in changes:
            changes = {"attention_head_size": 0, **changes}
        if "position_biased_input" in changes:
            changes = {"mlm_head": None, **changes}
        if changes.get("num_labels", self.num_labels) != self.num_labels:
            changes = {"label_names": (), **changes}
        return dataclasses.replace(self, **changes)


def _position_terms(value: Any) -> tuple[PositionTerm, ...]:
    """Returns the sorted terms of a published `pos_att_type`: text such as "c2p|p2c", a list of terms, or None."""
    terms = value.split("|") if isinstance(value, str) else value or ()
    if not isinstance(terms, list | tuple) or not all(isinstance(term, str) for term in terms):
        raise UserError(f"pos_att_type is {value!r}; it must be a string such as 'c2p|p2c', or a list of terms")
    terms = sorted({term.strip().lower() for term in terms} - {"", "none"})
    unknown = [term for term in terms if term not in ("c2p", "p2c")]
    if unknown:
        raise UserError(
            f"pos_att_type has {list_names(unknown)}; allowed are c2p, p2c and both ('c2p|p2c'); "
            "p2p never worked in the original code and no released model has it"
        )
    return tuple(terms)  # type: ignore[return-value]
