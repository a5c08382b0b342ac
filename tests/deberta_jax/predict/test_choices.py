"""The best of several choices: alone, as `finetune` predicts it, and equal to transformers' models."""

import re

import numpy as np
import pytest

from deberta_jax.errors import UserError
from deberta_jax.predict.choices import ChooseAnswers, PromptAndChoices
from deberta_jax.train.tasks.choices.encoding import encode_choice_questions
from deberta_jax.train.tasks.choices.questions import ChoiceQuestion

from ...support.pipelines import open_both, real_questions
from ...support.span_predictor import predictor_of
from ...support.tokenizer_texts import corpus, real_folder

PROMPT = "Emma had been happy in her home. "


def chooser():
    return predictor_of("pooler", "classifier", classes=1, max_position_embeddings=512)


def test_probabilities_are_those_of_the_choices():
    first, second = chooser().choose([PROMPT, "Who?"], [["a", "the house", "her father"], ("x", "y")])
    assert len(first.probabilities) == 3
    assert sum(first.probabilities) == pytest.approx(1)
    assert first.probability == max(first.probabilities) == first.probabilities[first.index]
    assert first.text == ["a", "the house", "her father"][first.index]
    assert (len(second.probabilities), first.notes) == (2, ())


@pytest.mark.parametrize("question", [None, "Who was _ ?"])
def test_rows_are_those_of_finetune_and_cuts_are_noted(question):
    model, choices = chooser(), ("Mr. Knightley", "her father and " * 3)
    item = PromptAndChoices(PROMPT * 3, choices, question)
    encoded = encode_choice_questions(
        [ChoiceQuestion(PROMPT * 3, question, choices, None)], model.tokenizer, max_length=40
    )
    batch = encoded.batch(np.array([0]), length=40)
    rows = ChooseAnswers(max_length=40).encode(model, item)
    for number, row in enumerate(rows.rows):
        real = batch["attention_mask"][0, number] == 1
        assert list(row.input_ids) == batch["input_ids"][0, number][real].tolist()
        assert list(row.token_type_ids) == batch["token_type_ids"][0, number][real].tolist()
    (note,) = rows.context
    kept, tokens = map(int, re.fullmatch(r"the prompt was cut to (\d+) of its (\d+) tokens to .* 40", note).groups())
    assert tokens == len(model.tokenizer.encode(PROMPT * 3))
    special = 3 + len(model.tokenizer.encode(encoded_pair(question, choices[1])))
    assert kept == 40 - special
    (result,) = model.choose([item.prompt], [choices], question and [question], max_length=40)
    assert result.notes == (note,)


def encoded_pair(question, choice):
    return choice if question is None else " ".join(question.replace("_", f" {choice} ").split())


def test_a_choice_without_room_is_cut_and_noted():
    (result,) = chooser().choose([PROMPT], [["x", "happy " * 60]], max_length=20)
    assert re.match(r"the prompt was cut to 0 of its \d+ tokens to fit max_length 20$", result.notes[0])
    assert re.match(r"the longest choice was cut to 17 of its \d+ tokens", result.notes[1])


@pytest.mark.parametrize(
    ("prompts", "choices", "message"),
    [
        (["a"], [["x"]], "there is 1 choice; give at least two"),
        (["a"], [[]], "there are no choices; give at least two"),
        (["a"], ["xy"], "the choices are a str; give a list of texts"),
        (["a", "b"], [["x", "y"]], "there are 2 prompts and 1 choices; give one for each"),
        (["a", "b"], [["x", "y"], ["x", 3]], "text 1: choice 1 is a int, 3"),
        (["a"], [["x", " "]], "choice 1 is ' ', which is blank; give a text"),
        ([""], [["x", "y"]], "the prompt is '', which is blank; give a text"),
        ([None], [["x", "y"]], "the prompt is a NoneType"),
        ("a", [["x", "y"]], "prompts is a str; give"),
    ],
)
def test_bad_items_are_one_line(prompts, choices, message):
    with pytest.raises(UserError, match=re.escape(message)):
        chooser().choose(prompts, choices)


def test_models_of_classes_and_of_tokens_are_refused():
    with pytest.raises(UserError, match="has 3 classes, not one score for each choice; classify the texts instead"):
        predictor_of("pooler", "classifier").choose(["a"], [["x", "y"]])
    with pytest.raises(UserError, match=r"has no pooler; it has .* --kind choice"):
        predictor_of("classifier").choose(["a"], [["x", "y"]])
    with pytest.raises(UserError, match="max_length is 3; it must be at least 4"):
        chooser().choose(["a"], [["x", "y"]], max_length=3)


# -------------------------------------------------------------------------------------------------- transformers


def compare(model, ours, tokenizer, prompts, choices):
    """Asserts that the probabilities are those of a multiple-choice model of transformers."""
    import torch

    found = ours.choose(prompts, choices, max_length=160)
    for result, prompt, options in zip(found, prompts, choices, strict=True):
        rows = tokenizer(
            [prompt] * len(options), options, truncation="only_first", max_length=160, padding=True, return_tensors="pt"
        )
        with torch.no_grad():
            logits = model(**{name: tensor[None] for name, tensor in rows.items()}).logits[0]
        np.testing.assert_allclose(result.probabilities, logits.softmax(-1).numpy(), atol=1e-4)
        assert result.index == int(logits.argmax())
    return found


@pytest.mark.torch
def test_real_choices_equal_transformers(tmp_path):
    """The prompts are contexts with a question, some longer than a row; the choices are further questions."""
    import transformers

    folder = real_folder("deberta-v3")
    model, ours = open_both(tmp_path, "ForMultipleChoice", folder, vocab_size=128_100)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    asked = [
        (question, context)
        for question, context in real_questions()
        if tokenizer(context)["input_ids"] == ours.tokenizer(context).input_ids
    ][:200]
    texts = [question for question, _ in asked]
    choices = [[texts[(n + step) % 200] for step in range(2 + n % 4)] for n in range(200)]
    found = compare(model, ours, tokenizer, [context for _, context in asked], choices)
    assert 10 < sum(bool(result.notes) for result in found) < 190
    assert len({result.index for result in found}) > 2


@pytest.mark.torch
def test_choices_with_a_small_tokenizer_equal_transformers(tmp_path, novel):
    import transformers

    model, ours = open_both(tmp_path, "ForMultipleChoice", novel / "tokenizer")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    lines = [line for line in corpus(20_000) if tokenizer(line)["input_ids"] == ours.tokenizer(line).input_ids]
    short = [line[:40] for line in lines]
    choices = [[short[n - 1], short[n - 2], "a"] for n in range(20)]
    compare(model, ours, tokenizer, lines[:20], choices)
