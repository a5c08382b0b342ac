"""Answers in contexts of any length: alone, as `finetune` predicts them, and equal to the pipeline of transformers."""

import dataclasses
import math
import re

import numpy as np
import pytest

from deberta_jax.errors import UserError
from deberta_jax.models import DebertaForQuestionAnswering
from deberta_jax.predict.answers import AnswerQuestions, QuestionAndContext
from deberta_jax.train.tasks.spans.answers import combine_windows
from deberta_jax.train.tasks.spans.questions import SpanQuestion
from deberta_jax.train.tasks.spans.windows import encode_span_questions

from ...support.pipelines import ODD, open_both, real_questions
from ...support.span_predictor import predictor_of, xlnet_predictor_of
from ...support.tokenizer_texts import real_folder

CONTEXT = "Emma Woodhouse, handsome,  clever, and rich, had a comfortable home. "
SIZES = {"max_length": 40, "max_question_length": 8, "stride": 12, "max_answer_length": 5}


def spans():
    return predictor_of("span_classifier", max_position_embeddings=512)


def decode(pipeline, windows, *, context=CONTEXT):
    """Returns the answer from hand-made outputs of windows."""
    model, item = spans(), QuestionAndContext("Who?", context)
    rows = pipeline.encode(model, item)
    assert len(rows.rows) == len(windows)
    return pipeline.decode(model, item, rows, windows)


def output(*found, null, total=0.0, begin):
    """Returns the outputs of a window from (first token of the context, last token, score) of spans."""
    starts, ends, scores = (np.array(column) for column in zip(*found, strict=True))
    return {
        "starts": starts + begin,
        "ends": ends + begin,
        "scores": scores.astype(np.float32),
        "exists": np.ones(len(found), bool),
        "null_score": np.array([null], np.float32),
        "start_total": np.array([total / 2], np.float32),
        "end_total": np.array([total / 2], np.float32),
    }


def test_no_answer_needs_the_margin():
    pipeline = AnswerQuestions(top_k=2)
    begin = pipeline.encode(spans(), QuestionAndContext("Who?", CONTEXT)).context.begin
    windows = [output((0, 0, 2.0), (1, 1, 1.5), null=2.5, total=3.0, begin=begin)]
    plain = decode(pipeline, windows)
    assert plain.text
    assert plain.score == pytest.approx(math.exp(-1))
    assert plain.no_answer_score == pytest.approx(math.exp(-0.5))
    assert [candidate.score for candidate in plain.candidates] == pytest.approx([math.exp(-1), math.exp(-1.5)])
    none = decode(dataclasses.replace(pipeline, no_answer=True), windows)
    assert (none.text, none.start, none.end, none.score) == ("", 0, 0, plain.no_answer_score)
    assert [candidate.text for candidate in none.candidates] == ["", plain.text]
    kept = decode(dataclasses.replace(pipeline, no_answer=True, null_threshold=0.5), windows)
    assert kept.text == plain.text
    assert kept.candidates[0].text == plain.text


def test_two_rules_compare_windows():
    short = AnswerQuestions(**SIZES, top_k=2)
    begin = short.encode(spans(), QuestionAndContext("Who?", CONTEXT * 2)).context.begin
    windows = len(short.encode(spans(), QuestionAndContext("Who?", CONTEXT * 2)).rows)
    assert windows > 2
    first = output((0, 0, 1.0), null=0.0, total=1.5, begin=begin)
    last = output((2, 2, 3.0), null=1.0, total=9.0, begin=begin)
    middle = [output((1, 1, -20.0), null=9.0, total=1.0, begin=begin)] * (windows - 2)
    document = decode(short, [first, *middle, last], context=CONTEXT * 2)
    assert document.score > document.candidates[1].score
    assert document.windows == windows
    totals = [1.5, *[1.0] * (windows - 2), 9.0]
    joint = 2 * np.logaddexp.reduce(np.array(totals) / 2)
    assert document.score == pytest.approx(math.exp(3 - joint))
    assert document.no_answer_score == pytest.approx(math.exp(0 - joint))
    separate = decode(dataclasses.replace(short, softmax="window"), [first, *middle, last], context=CONTEXT * 2)
    assert separate.text == document.candidates[1].text
    assert separate.score == pytest.approx(math.exp(-0.5))
    assert separate.no_answer_score == pytest.approx(math.exp(-8))


@pytest.mark.parametrize("kind", ["deberta", "xlnet"])
def test_answers_are_those_of_finetune(kind):
    """The same windows, spans and texts as the task of `finetune` has, for questions with one or more windows."""
    import jax

    from deberta_jax.train.tasks.spans.task import Spans

    model = spans() if kind == "deberta" else xlnet_predictor_of(DebertaForQuestionAnswering)
    texts = [CONTEXT * n for n in (1, 2, 5)] + [odd for odd in ODD if len(model.tokenizer.encode(odd)) > 0][:6]
    asked = [SpanQuestion(str(n), "who was happy, and why was she " * 2, text, ()) for n, text in enumerate(texts)]
    sizes = {name: size for name, size in SIZES.items() if name != "stride"}
    windows = encode_span_questions(asked, model.tokenizer, doc_stride=12, **sizes)
    batch = windows.batch(np.arange(len(windows.lengths)), length=40)
    run = jax.jit(DebertaForQuestionAnswering(model.config).apply)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    out = run({"params": {name: model.params[name] for name in ("deberta", "span_classifier")}}, **inputs)
    arrays = jax.device_get(Spans(n_best=20, max_answer_length=5).predict(out, jax.tree.map(jax.numpy.asarray, batch)))
    predictions = [{name: array[row] for name, array in arrays.items()} for row in range(len(windows.lengths))]
    expected = list(combine_windows(asked, windows, predictions, n_best=20))
    answers = model.answer([one.question for one in asked], texts, **SIZES, top_k=20, no_answer=True)
    assert max(answer.windows for answer in answers) > 3
    for answer, prediction in zip(answers, expected, strict=True):
        found = [one for one in answer.candidates if one.text]
        kept = prediction.candidates[: len(found)]
        assert [(one.text, one.start) for one in found] == [(one.text, one.start) for one in kept]
        best = kept[0].score
        np.testing.assert_allclose(
            np.log([one.score / found[0].score for one in found]), [one.score - best for one in kept], atol=1e-4
        )
        np.testing.assert_allclose(math.log(answer.no_answer_score / found[0].score), prediction.no_answer, atol=1e-4)
        assert (answer.text == "") == (prediction.no_answer > 0)
        assert answer.notes == ("the question was cut to 8 of its 14 tokens",) or "cut to 8 of its" in answer.notes[0]


def test_rows_shorter_than_the_number_of_spans_have_no_more():
    (answer,) = spans().answer(["Who?"], "Emma", top_k=100)
    assert 1 <= len(answer.candidates) < 30
    assert all("Emma"[one.start : one.end] == one.text for one in answer.candidates)


@pytest.mark.parametrize(
    ("questions", "contexts", "options", "message"),
    [
        (["Who?", ""], "Emma", {}, "text 1: the question is '', which is blank; give a text"),
        (["Who?", 3], "Emma", {}, "text 1: the question is a int, 3"),
        (["Who?"], [None], {}, "the context is a NoneType"),
        (["Who?"], " ", {}, "the context is ' ', which is blank"),
        (["Who?"], "\u200b", {}, "has no tokens; give one with words in it"),
        (["Who?"], ["a", "b"], {}, "there are 1 questions and 2 contexts; give one for each"),
        ("Who?", "a", {}, "questions is a str; give"),
        (["Who?"], "a", {"max_length": 90}, "max_length 90 leaves 23 tokens for the context"),
        (["Who?"], "a", {"top_k": 0}, "top_k is 0; it must be at least 1"),
        (["Who?"], "a", {"softmax": "all"}, "softmax is 'all'; it must be one of document, window"),
        (["Who?"], "a", {"null_threshold": math.nan}, "null_threshold is nan; it must be a finite number"),
    ],
)
def test_bad_items_and_settings_are_one_line(questions, contexts, options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        spans().answer(questions, contexts, **options)


def test_a_model_without_the_head_says_what_it_has():
    with pytest.raises(UserError, match=r"has no span_classifier; it has .*--kind span"):
        predictor_of("classifier").answer(["Who?"], "Emma")


# -------------------------------------------------------------------------------------------------- transformers


class Reference:
    """The pipeline "question-answering" of transformers 4 or, for version 5, what it computes, from the same logits.

    Attributes:
      pipe: the pipeline, if there is one.
    """

    def __init__(self, model, folder, ours):
        import transformers
        from transformers.pipelines import SUPPORTED_TASKS

        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, model_max_length=512)
        self.model, self.ours = model, ours
        self.pipe = None
        if "question-answering" in SUPPORTED_TASKS:
            self.pipe = transformers.pipeline("question-answering", model=model, tokenizer=self.tokenizer, device="cpu")

    def answers(self, question, context, *, top_k, no_answer, overlap, max_length, longest=30):
        """Returns start, end and score of the best answers, without white space around them."""
        if self.pipe is not None:
            found = self.pipe(
                question=question,
                context=context,
                top_k=top_k,
                handle_impossible_answer=no_answer,
                doc_stride=overlap,
                max_seq_len=max_length,
                max_answer_len=longest,
                align_to_words=False,
            )
            found = found if isinstance(found, list) else [found]
        else:
            found = self._computed(question, context, top_k, no_answer, overlap, max_length, longest)
        stripped = []
        for one in found:
            text = context[one["start"] : one["end"]]
            start = one["start"] + len(text) - len(text.lstrip()) if text.strip() else 0
            stripped.append((start, start + len(text.strip()), one["score"]))
        return stripped

    def _computed(self, question, context, top_k, no_answer, overlap, max_length, longest):
        """Follows `preprocess`, `select_starts_ends`, `decode_spans` and `postprocess` of transformers 4.57."""
        encoded = self.tokenizer(
            question,
            context,
            truncation="only_second",
            max_length=max_length,
            stride=overlap,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        answers, null_score = [], 1e6
        for number, ids in enumerate(encoded["input_ids"]):
            is_context = np.array([sequence == 1 for sequence in encoded.sequence_ids(number)])
            start, end = self._probabilities(ids, encoded["token_type_ids"][number], is_context)
            null_score = min(null_score, float(start[0] * end[0]))
            start[0] = end[0] = 0
            products = np.tril(np.triu(np.outer(start, end)), longest - 1)
            best = np.argsort(-products.ravel(), kind="stable")[:top_k]
            for first, last in zip(*np.unravel_index(best, products.shape), strict=True):
                if not (is_context[first] and is_context[last]):
                    continue
                offsets = encoded["offset_mapping"][number]
                text = context[offsets[first][0] : offsets[last][1]]
                score = float(products[first, last])
                same = [one for one in answers if one["answer"].lower() == text.lower()]
                if same:
                    same[0]["score"] += score
                else:
                    answers.append(
                        {"answer": text, "start": offsets[first][0], "end": offsets[last][1], "score": score}
                    )
        if no_answer:
            answers.append({"answer": "", "start": 0, "end": 0, "score": null_score})
        return sorted(answers, key=lambda one: -one["score"])[:top_k]

    def _probabilities(self, ids, types, is_context):
        """Returns the probabilities of each start and end by a softmax over [CLS] and the context."""
        import torch

        with torch.no_grad():
            out = self.model(torch.tensor([ids]), token_type_ids=torch.tensor([types]))
        allowed = is_context.copy()
        allowed[0] = True
        both = []
        for logits in (out.start_logits, out.end_logits):
            masked = np.where(allowed, logits[0].numpy(), -10_000.0)
            shares = np.exp(masked - masked.max())
            both.append(shares / shares.sum())
        return both


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Our model and transformers' pipeline of the same weights, with the published tokenizer of DeBERTa-v3."""
    folder = tmp_path_factory.mktemp("real")
    model, ours = open_both(folder, "ForQuestionAnswering", real_folder("deberta-v3"), vocab_size=128_100)
    return ours, Reference(model, folder, ours)


def compare(answers, expected):
    """Asserts that answers and scores are equal."""
    found = [(one.start, one.end, one.score) for one in answers]
    assert [one[:2] for one in found] == [one[:2] for one in expected]
    np.testing.assert_allclose([one[2] for one in found], [one[2] for one in expected], atol=1e-4)


def questions_of(real, count):
    """Returns real questions whose context transformers tokenizes as we do: all but one or two."""
    ours, reference = real
    same = {}
    for _, context in real_questions():
        if context not in same:
            same[context] = reference.tokenizer(context)["input_ids"] == ours.tokenizer(context).input_ids
    assert list(same.values()).count(False) <= 2
    usable = [pair for pair in real_questions() if same[pair[1]]]
    return usable[:: len(usable) // count][:count]


@pytest.mark.torch
@pytest.mark.parametrize("no_answer", [False, True])
def test_real_questions_equal_the_pipeline_of_transformers(real, no_answer):
    ours, reference = real
    asked = questions_of(real, 200)
    answers = ours.answer(*zip(*asked, strict=True), max_length=512, no_answer=no_answer)
    for answer, pair in zip(answers, asked, strict=True):
        if answer.windows == 1:
            expected = reference.answers(*pair, top_k=1, no_answer=no_answer, overlap=30, max_length=512)
            compare(answer.candidates, expected)
    assert sum(answer.windows == 1 for answer in answers) > 190
    assert len({answer.text for answer in answers}) > 100


@pytest.mark.torch
@pytest.mark.parametrize("top_k", [1, 4])
def test_windows_over_long_contexts_equal_the_pipeline_of_transformers(real, top_k):
    ours, reference = real
    asked = questions_of(real, 40)
    sizes = {"max_length": 128, "stride": 128, "max_answer_length": 20}  # overlap by 20 tokens
    answers = ours.answer(*zip(*asked, strict=True), **sizes, softmax="window", no_answer=True, top_k=top_k)
    assert sum(answer.windows > 1 for answer in answers) > 20
    for answer, pair in zip(answers, asked, strict=True):
        expected = reference.answers(*pair, top_k=top_k, no_answer=True, overlap=20, max_length=128, longest=20)
        compare(answer.candidates, expected)


@pytest.mark.torch
def test_odd_contexts_equal_the_pipeline_of_transformers(real):
    ours, reference = real
    texts = [text for text in ODD if reference.tokenizer(text)["input_ids"] == ours.tokenizer(text).input_ids]
    assert len(texts) >= 8
    answers = ours.answer(["What is it?"] * len(texts), texts)
    for answer, text in zip(answers, texts, strict=True):
        expected = reference.answers("What is it?", text, top_k=1, no_answer=False, overlap=30, max_length=384)
        compare(answer.candidates, expected)
