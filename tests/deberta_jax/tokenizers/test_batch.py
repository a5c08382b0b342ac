"""Calls with several texts: lists of encodings, padded arrays, and what is refused."""

import numpy as np
import pytest

from deberta_jax.errors import UserError
from deberta_jax.tokenizers.tokenizer import Tokenizer

A, B = ["she was happy", "he"], ["not", "the man and she"]


def test_a_list_gives_what_each_text_gives(spm: Tokenizer):
    assert spm(A) == [spm(text) for text in A]
    assert spm(tuple(A)) == spm(np.array(A)) == spm(A)
    pairs = [spm(a, b) for a, b in zip(A, B, strict=True)]
    assert (
        spm(A, B) == spm(list(zip(A, B, strict=True))) == spm([list(pair) for pair in zip(A, B, strict=True)]) == pairs
    )
    assert spm(A, B, max_length=5, return_offsets=True)[1] == spm(A[1], B[1], max_length=5, return_offsets=True)
    assert spm(["[MASK]"], parse_mask=True)[0].input_ids == [1, spm.mask_id, 2]
    assert spm([]) == spm([], []) == []


@pytest.mark.parametrize("padding", [True, "longest", "max_length"])
def test_padding_gives_arrays(roberta: Tokenizer, padding):
    encodings = roberta(A, B, max_length=20)
    batch = roberta(A, B, max_length=20, padding=padding)
    length = 20 if padding == "max_length" else max(len(encoding.input_ids) for encoding in encodings)
    for encoding, ids, mask, types in zip(
        encodings, batch.input_ids, batch.attention_mask, batch.token_type_ids, strict=True
    ):
        n = len(encoding.input_ids)
        assert ids.tolist() == encoding.input_ids + [roberta.pad_id] * (length - n)
        assert mask.tolist() == [1] * n + [0] * (length - n)
        assert types.tolist() == encoding.token_type_ids + [0] * (length - n)
    assert batch.input_ids.dtype == batch.attention_mask.dtype == batch.token_type_ids.dtype == np.int32
    assert roberta([], padding=True).input_ids.shape == (0, 0)
    assert roberta(["a"], padding="max_length", max_length=4).input_ids.shape == (1, 4)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((None,), {}, "texts is a NoneType; give a string, a list of strings"),
        ((5,), {}, "texts is a int"),
        ((b"a",), {}, "texts is a bytes"),
        (({"a": 1},), {}, "texts is a dict"),
        ((["a", None],), {}, "text 1 is a NoneType"),
        ((["a", b"b"],), {}, "text 1 is a bytes"),
        (([["a", "b", "c"]],), {}, "text 0 is a list of 3"),
        (([[["a"], "b"]],), {}, "text 0 is a list"),
        (([("a", None)],), {}, "second of pair 0 is a NoneType"),
        ((["a"], ["b", "c"]), {}, "1 texts and 2 pairs"),
        ((["a"], "b"), {}, "pairs is a str"),
        ((["a"], [None]), {}, "pair of text 0 is a NoneType"),
        (("a", ["b"]), {}, "the pair is a list"),
        (("a \ud800",), {}, "half of a surrogate pair"),
        ((["a", "\ud800"],), {}, "text 1 has half of a surrogate pair"),
        (("a", 3), {}, "the pair is a int"),
        (("a",), {"padding": True}, r"for a single text; give a list, such as \[text\]"),
        ((["a"],), {"padding": "left"}, "it must be False, True"),
        ((["a"],), {"padding": "max_length"}, "give max_length too"),
        ((["a"],), {"padding": True, "return_offsets": True}, "call without padding"),
        ((["a"],), {"max_length": 1}, "max_length is 1; it must be at least 2"),
    ],
)
def test_anything_else_is_one_clear_error(spm: Tokenizer, arguments, options, message):
    with pytest.raises(UserError, match=message) as error:
        spm(*arguments, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", [None, 5, b"a", ["a"]])
def test_encode_takes_a_string(spm: Tokenizer, text):
    with pytest.raises(UserError, match="text is a"):
        spm.encode(text)
    with pytest.raises(UserError, match="text 1 is a"):
        spm.encode_batch(["a", text])
