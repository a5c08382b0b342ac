"""XLNet: its published configuration, a small one, batches, and a SentencePiece model like its own."""

import functools
import io

import numpy as np
import sentencepiece

from deberta_jax import Tokenizer
from deberta_jax.tokenizers.xlnet import XLNetPieces

from .tokenizer_texts import corpus

# The published config.json of xlnet-base-cased, without the settings of text generation.
PUBLISHED = {
    "architectures": ["XLNetLMHeadModel"],
    "attn_type": "bi",
    "bi_data": False,
    "bos_token_id": 1,
    "clamp_len": -1,
    "d_head": 64,
    "d_inner": 3072,
    "d_model": 768,
    "dropout": 0.1,
    "end_n_top": 5,
    "eos_token_id": 2,
    "ff_activation": "gelu",
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "mem_len": None,
    "model_type": "xlnet",
    "n_head": 12,
    "n_layer": 12,
    "pad_token_id": 5,
    "reuse_len": None,
    "same_length": False,
    "start_n_top": 5,
    "summary_activation": "tanh",
    "summary_last_dropout": 0.1,
    "summary_type": "last",
    "summary_use_proj": True,
    "untie_r": True,
    "vocab_size": 32000,
}
LARGE = {**PUBLISHED, "d_model": 1024, "d_inner": 4096, "n_head": 16, "n_layer": 24}
SMALL = {**PUBLISHED, "vocab_size": 90, "d_model": 32, "d_head": 8, "d_inner": 48, "n_head": 4, "n_layer": 2}


def padded_batch(length: int = 41, *, ends: tuple[str, ...] = ("left", "none", "left")) -> dict[str, np.ndarray]:
    """Returns rows of pairs, of which some are padded, and as many tokens of the types 0, 1 and 2."""
    rng, index = np.random.default_rng(0), np.arange(length)
    masks = {"left": index >= length // 3, "right": index < length - length // 3, "none": index >= 0}
    mask = np.stack([masks[end] for end in ends]).astype(np.int32)
    types = np.where(mask, (index > length // 2) + (index == length - 1), 3).astype(np.int32)
    ids = np.where(mask, rng.integers(9, 90, mask.shape), 5).astype(np.int32)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


@functools.cache
def pieces_model(*, plain: bool = False) -> bytes:
    """Trains a small model by the options of XLNet's, with some pieces that end with a digit and a comma.

    Args:
      plain: Without the user-defined pieces of punctuation, which transformers 5 treats as special tokens.
    """
    output, numbers = io.BytesIO(), ["it was 1945, and 9, or 20, but 1,234, then 5, of 7,"] * 300
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*corpus(60_000), *numbers]),
        model_writer=output,
        vocab_size=600,
        character_coverage=0.9999,
        minloglevel=2,
        split_by_number=False,
        split_by_unicode_script=False,
        control_symbols=["<cls>", "<sep>", "<pad>", "<mask>", "<eod>"],
        user_defined_symbols=["<eop>", *([] if plain else [".", "(", ")", '"', "-", "\u2013", "£", "€"])],
    )
    return output.getvalue()


def xlnet_tokenizer() -> Tokenizer:
    return Tokenizer(XLNetPieces(pieces_model(), source="the model"))
