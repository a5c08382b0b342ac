"""Tests of the predictions from the best spans of several windows."""

import numpy as np

from deberta_jax.predict.span_search import SpanCandidate
from deberta_jax.tokenizers.tokenizer import Encoding
from deberta_jax.train.tasks.ragged import Ragged
from deberta_jax.train.tasks.spans.answers import combine_windows
from deberta_jax.train.tasks.spans.questions import SpanQuestion
from deberta_jax.train.tasks.spans.windows import Windows


class PiecesOfSpaces:
    """The offsets resemble those of v1's tokenizer, for which one of two spaces may be a piece."""

    pair_separators = 1

    def __call__(self, text, *, return_offsets):
        return Encoding([1, 5, 6, 7, 5, 2], [0] * 6, [None, (0, 1), (2, 2), (3, 4), (5, 6), None])


def test_a_text_has_its_highest_score_and_no_white_space_around_it():
    questions = [SpanQuestion("1", "q", "a  b a", None)]
    ids = Ragged.of([[9]]), Ragged.of([[5, 6, 7, 5]])
    rows = np.array([[0, 0], [0, 1], [8, 7]], np.int32)  # owner, first, lengths
    two = Windows(PiecesOfSpaces(), questions, *ids, np.zeros(1, np.int32), *rows, None, ())
    other_arrays = {"null_score": np.float32(1), "finite": np.bool_(True)}
    predictions = [
        {"starts": np.array([6, 4]), "ends": np.array([6, 5]), "scores": np.array([3, 2], np.float32), **other_arrays},
        {"starts": np.array([3, 5]), "ends": np.array([3, 5]), "scores": np.array([9, 4], np.float32), **other_arrays},
    ]
    (prediction,) = combine_windows(questions, two, predictions, n_best=5)
    assert prediction.candidates == (SpanCandidate("a", 5, 4.0), SpanCandidate("b", 3, 2.0))
    assert (prediction.null_score, prediction.no_answer) == (1, -3)
