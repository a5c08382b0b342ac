"""Fields of a `config.json` that `DebertaConfig` does not have: which are set aside, and which are refused."""

import difflib
import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from .errors import UserError
from .terminal import list_names, printable

_MOST_UNUSED = 30  # in a message
_LOG = logging.getLogger("deberta_jax")

# Fields that do not describe the model: bookkeeping of transformers, of any version, and settings of text generation,
# which versions 4 write into every file.
_BOOKKEEPING = frozenset(
    "_attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash _name_or_path "
    "add_cross_attention architectures attn_implementation bad_words_ids begin_suppress_tokens bos_token_id "
    "chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype "
    "early_stopping encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task "
    "forced_bos_token_id forced_eos_token_id gradient_checkpointing is_decoder is_encoder_decoder label2id legacy "
    "length_penalty max_length min_length no_repeat_ngram_size num_beam_groups num_beams num_choices "
    "num_return_sequences output_attentions output_hidden_states output_past output_scores pooler_hidden_size prefix "
    "pruned_heads remove_invalid_values repetition_penalty return_dict return_dict_in_generate sep_token_id "
    "summary_activation summary_first_dropout summary_last_dropout summary_type summary_use_proj suppress_tokens "
    "talking_head task_specific_params temperature tf_legacy_loss tie_encoder_decoder tie_word_embeddings "
    "tokenizer_class top_k top_p torch_dtype torchscript transformers_version typical_p use_bfloat16 use_cache "
    "use_return_dict "
    # Found only in the files of BERT, RoBERTa and ELECTRA.
    "_num_labels directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head "
    "pooler_type".split()
)
# Fields that change what a model computes, and the one value of each with which it is a model of this library. Null
# and an empty value always are.
_ALTERING: dict[str, Any] = {
    "position_embedding_type": "absolute",
    **dict.fromkeys(("load_in_4bit", "load_in_8bit"), False),
    **dict.fromkeys(("quantization_config", "compression_config", "quantization")),
    **dict.fromkeys(("rope_theta", "rope_scaling", "rope_parameters", "alibi", "sliding_window")),
    **dict.fromkeys(("num_key_value_heads", "local_attention", "global_attn_every_n_layers")),
}
_QUANTIZED = ("load_in_4bit", "load_in_8bit", "quantization_config", "compression_config", "quantization")
# What other families of models call fields that DebertaConfig has.
_FOREIGN_NAMES = {
    **dict.fromkeys(("d_model", "dim", "hidden_dim", "model_dim", "n_embd"), "hidden_size"),
    **dict.fromkeys(("n_layer", "n_layers", "num_layer", "num_layers", "encoder_layers"), "num_hidden_layers"),
    **dict.fromkeys(("n_head", "n_heads", "num_head", "num_heads", "encoder_attention_heads"), "num_attention_heads"),
    **dict.fromkeys(("d_ff", "d_inner", "ffn_dim", "n_inner", "mlp_dim", "encoder_ffn_dim"), "intermediate_size"),
    **dict.fromkeys(("activation", "activation_function", "hidden_activation", "act_fn"), "hidden_act"),
    **dict.fromkeys(("layer_norm_epsilon", "rms_norm_eps", "norm_eps", "ln_eps"), "layer_norm_eps"),
    **dict.fromkeys(("max_position", "max_positions", "n_positions", "n_ctx"), "max_position_embeddings"),
    **dict.fromkeys(("head_dim", "d_kv"), "attention_head_size"),
    **dict.fromkeys(("attention_dropout", "attn_dropout", "attn_pdrop"), "attention_probs_dropout_prob"),
    **dict.fromkeys(("n_vocab", "vocabulary_size"), "vocab_size"),
    "label_names": "id2label",
}
# Fields that neither what a model computes nor what its output means depends on; a name like theirs is no mistake.
_WITHOUT_NEIGHBORS = frozenset({"initializer_range", "label_names", "model_type", "cls_dropout"})
_SIMILAR = 0.815  # of difflib, for names without case and punctuation: "num_hidden_layer" has 0.97


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a hint at the known name that is most like `name`, or "" if none is similar."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def set_aside(values: Mapping[str, Any], known: Collection[str], *, where: str) -> dict[str, Any]:
    """Returns the known fields. Unknown ones that are not mere bookkeeping are listed in one line of the log.

    Args:
      values: the fields of a file.
      known: the fields that the reader understands.
      where: the file, for messages.

    Raises:
      UserError: the model is quantized or computes something else than a model of this library, or an unknown field
        looks like a known one that is missing or has another value.
    """
    kept, unused = {}, []
    for name, value in values.items():
        if name in known:
            kept[name] = value
        elif name in _ALTERING:
            _check_unaltered(name, value, where)
        elif name not in _BOOKKEEPING:
            meant = _meant_field(name, known)
            if meant is None:
                unused.append(name)
            elif meant not in values or values[meant] != value:
                raise UserError(
                    f"{where}: unknown field {name!r}. Did you mean {meant!r}? Correct its name, or remove it if "
                    f"{meant} is right without it"
                )
    if unused:
        _LOG.warning(
            "%s: fields that are not used: %s", printable(where), list_names(sorted(unused), most=_MOST_UNUSED)
        )
    return kept


def _check_unaltered(name: str, value: Any, where: str) -> None:
    if not value or value == _ALTERING[name]:
        return
    if name in _QUANTIZED:
        method = f" ({value['quant_method']})" if isinstance(value, Mapping) and "quant_method" in value else ""
        raise UserError(
            f"{where}: {name} is set{method}: the weights are quantized, which is not supported; use the original "
            "weights, in float32, float16 or bfloat16"
        )
    raise UserError(
        f"{where}: {name} is {value!r}; only {_ALTERING[name]!r} is supported, because no DeBERTa, BERT, RoBERTa or "
        "ELECTRA of this library computes anything else"
    )


def _meant_field(name: str, known: Collection[str]) -> str | None:
    """Returns the known field that a misspelled or foreign name means, if there is one."""
    if name in _FOREIGN_NAMES:
        return _FOREIGN_NAMES[name]
    plain = {_plain(field): field for field in (*known, "id2label") if field not in _WITHOUT_NEIGHBORS}
    matches = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=_SIMILAR)
    return plain[matches[0]] if matches else None


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
