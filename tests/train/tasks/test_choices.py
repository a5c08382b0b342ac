"""Multiple choice: files, labels of every form, rows and masks, a run that learns, and everything that can be wrong."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import losses, sift
from deberta_jax.models import HeadOutput
from deberta_jax.sift import SiftConfig
from deberta_jax.train import finetune
from deberta_jax.train.configs import OptimizerConfig
from deberta_jax.train.tasks.batches import FinetuneBatches, evaluation_batches
from deberta_jax.train.tasks.choices import task as choices
from deberta_jax.train.tasks.choices.questions import Question, join
from deberta_jax.train.tasks.choices.task import Choice, encode_questions

from ...support.configs import changed, finetune_config
from ...support.letters import Letters, task_reader


@pytest.fixture
def read(tmp_path):
    """Writes the files of a task and reads them."""
    return task_reader(tmp_path, choices.load, Letters(), kind="choice", name="train.jsonl", max_length=32)


def row(label, *, options=("x", "yy", "z"), **more):
    return {"text": "ctx", "choices": list(options), "label": label, **more}


# ------------------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize(
    "labels", [(0, 2), ("0", "2"), ("A", "C"), ("x", "z")], ids=["numbers", "digits", "letters", "texts"]
)
def test_labels_are_indices_letters_or_texts(read, labels):
    task = read([row(label) for label in labels])
    assert task.questions["train"] == tuple(Question("ctx", None, ("x", "yy", "z"), label) for label in (0, 2))
    assert (task.name, task.label_names, task.main_metric) == ("train", (), "accuracy")


def test_swag_as_published(read):
    content = (
        ",video-id,fold-ind,startphrase,sent1,sent2,gold-source,ending0,ending1,ending2,ending3,label\n"
        '0,v,1,A man sits. He,"A man sits, alone.",He,gold,eats.,sleeps.,runs.,sings.,2\n'
    )
    columns = {
        "text_column": "sent1",
        "pair_column": "sent2",
        "choices_columns": ("ending0", "ending1", "ending2", "ending3"),
    }
    task = read(content, "train.csv", **columns)
    expected = Question("A man sits, alone.", "He", ("eats.", "sleeps.", "runs.", "sings."), 2)
    assert task.questions["train"] == (expected,)
    encoded = task.splits["train"].pairs[0][2].tolist()
    assert bytes(encoded).decode() == "Heruns."


def test_the_last_columns_may_be_blank_where_there_are_fewer_choices(read):
    content = "text\ta\tb\tc\tlabel\nt\tx\ty\tz\t2\nt\tx\ty\t\t1\n"
    task = read(content, "train.tsv", choices_columns=("a", "b", "c"))
    assert [question.choices for question in task.questions["train"]] == [("x", "y", "z"), ("x", "y")]
    assert task.splits["train"].notes == ("1 with fewer than 3 choices",)


def test_lists_of_questions_are_as_many_examples(read):
    article = {
        "text": "An article.",
        "questions": ["What ?", "It is _ ."],
        "options": [["a", "b"], ["c", "d", "e"]],
        "answers": ["B", "A"],
    }
    columns = {"pair_column": "questions", "choices_columns": ("options",), "label_column": "answers"}
    task = read([article], test=[{name: article[name] for name in ("text", "questions", "options")}], **columns)
    expected = [("What ?", ("a", "b"), 1), ("It is _ .", ("c", "d", "e"), 0)]
    assert task.questions["train"] == tuple(Question("An article.", *rest) for rest in expected)
    assert [question.label for question in task.questions["test"]] == [None, None]
    assert not task.splits["test"].labeled


@pytest.mark.parametrize(
    ("question", "joined"),
    [
        (None, "a choice"),
        ("", "a choice"),
        ("What is it?", "What is it? a choice"),
        ("It is _ .", "It is a choice ."),
        ("_ is it", "a choice is it"),
        ("It is about___.", "It is about a choice ."),
        ("What does my_name mean?", "What does my_name mean? a choice"),
    ],
)
def test_a_blank_is_filled(question, joined):
    assert join(question, "a choice") == joined


def test_a_choice_is_filled_in_as_it_is():
    assert join("It is _.", r"\1") == r"It is \1 ."


BAD = {
    "no text": ([{"choices": ["a", "b"], "label": 0}], {}, r"line 1: no column 'text'; the columns are 'choices'"),
    "no choices": ([{"text": "a", "label": 0}], {}, r"line 1: no column 'choices'; the columns are 'text', 'label'"),
    "no label": ([row(0), {"text": "t", "choices": ["a", "b"]}], {}, r"line 2: no column 'label'; the columns are"),
    "one choice": ([row(0, options=["a"])], {}, r"line 1: there is 1 choice in choices; give at least two"),
    "blank text": ([row(0) | {"text": " "}], {}, r"line 1: column 'text' is empty"),
    "blank choice": ([row(0, options=["a", ""])], {}, r"line 1: column 'choices' is empty"),
    "blank question": ([row(0, q="")], {"pair_column": "q"}, r"line 1: column 'q' is empty"),
    "no list": ([row(0) | {"choices": "a"}], {}, r"line 1: column 'choices' holds 'a', not a list; name one column"),
    "number": ([row(0, options=["a", 3])], {}, r"line 1: column 'choices' holds 3, not text"),
    "beyond": ([row(0), row(3)], {}, r"line 2: label 3 is not a choice, which are 0 to 2"),
    "negative": ([row(-1)], {}, r"line 1: label -1 is not a choice, which are 0 to 2"),
    "letter beyond": ([row("A"), row("D")], {}, r"line 2: label 'D' is not a choice, which are A to C"),
    "unseen": ([row("x"), row("w")], {}, r"line 2: label 'w' is the text of 0 choices; it must be of one"),
    "twice": ([row("xx", options=["xx", "xx"])], {}, r"line 1: label 'xx' is the text of 2 choices"),
    "ambiguous": (
        [row("1", options=["1", "0"])],
        {},
        r"its labels are indices and also texts of choices; write letters",
    ),
    "ambiguous letters": ([row("A", options=["B", "A"])], {}, r"are letters and also texts of choices; write indices"),
    "empty label": ([row("")], {}, r"line 1: the label is empty"),
    "null label": ([row(None)], {}, r"line 1: label None is not the index, the letter or the text"),
    "truth": ([row(True)], {}, r"line 1: label True is not the index, the letter or the text"),
    "uneven": (
        [row([0], q=["a", "b"], options=[["a", "b"], ["c", "d"]])],
        {"pair_column": "q"},
        r"line 1: lists of different lengths: 2 in 'q', 2 in 'choices', 1 in 'label'",
    ),
    "no lists": (
        [row([0], q=["a"], other="b")],
        {"pair_column": "q", "choices_columns": ("choices", "other")},
        r"line 1: column 'q' is a list of questions; their choices must be one column",
    ),
    "no room": ([row(0)], {"max_length": 3}, r"max_length is 3; it must be at least 4"),
}


@pytest.mark.parametrize(("rows", "settings", "message"), BAD.values(), ids=BAD)
def test_bad_files(read, rows, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(rows, **settings)
    assert "\n" not in str(caught.value)


def test_a_blank_choice_between_others_is_refused(read):
    with pytest.raises(ValueError, match=r"line 2: column 'a, b, c' is empty"):
        read("text\ta\tb\tc\tlabel\nt\tx\t\tz\t2\n", "train.tsv", choices_columns=("a", "b", "c"))


def test_bad_held_out_files(read):
    with pytest.raises(ValueError, match=r"validation\.jsonl, line 1: label 5 is not a choice"):
        read([row(0)], validation=[row(5)])
    with pytest.raises(ValueError, match=r"line 2: row 1 and this one differ: give every row a label, or none"):
        read([row(0)], test=[row(0), {"text": "t", "choices": ["a", "b"]}])


# --------------------------------------------------------------------------------------------------------- encoding


def test_rows_of_a_question():
    questions = [Question("ab", "q", ("x", "yy"), 1), Question("c", None, ("x", "y", "z"), 0)]
    encoded = encode_questions(questions, Letters(), max_length=16)
    batch = encoded.batch(np.array([0, 1]), length=9)
    a, b, c, q, x, y, z = map(ord, "abcqxyz")
    assert batch["input_ids"].tolist() == [
        [[1, a, b, 2, q, x, 2, 0, 0], [1, a, b, 2, q, y, y, 2, 0], [1, a, b, 2, q, x, 2, 0, 0]],
        [[1, c, 2, x, 2, 0, 0, 0, 0], [1, c, 2, y, 2, 0, 0, 0, 0], [1, c, 2, z, 2, 0, 0, 0, 0]],
    ]
    assert batch["real"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["token_type_ids"][0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 0, 0]
    assert batch["attention_mask"][0, 0].tolist() == [1] * 7 + [0] * 2
    assert batch["labels"].tolist() == [1, 0]
    assert encoded.lengths.tolist() == [8, 5]
    assert {array.dtype.name for array in batch.values()} == {"int32"}


def test_the_context_is_cut_and_no_choice():
    encoded = encode_questions([Question("abcdefgh", "q", ("xyz", "w"), 0)], Letters(), max_length=10)
    batch = encoded.batch(np.array([0]), length=10)
    texts = ["".join(chr(i) for i in ids if i > 2) for ids in batch["input_ids"][0]]
    assert texts == ["abcqxyz", "abcdeqw"]
    assert encoded.lengths.tolist() == [10]
    assert encoded.notes == ("1 contexts cut to 10 tokens with the question and the choice",)
    longer = encode_questions([Question("abc", None, ("x" * 9, "y"), 0)], Letters(), max_length=10)
    assert longer.batch(np.array([0]), length=10)["attention_mask"].sum(axis=-1).tolist() == [[10, 7]]
    assert "1 with choices cut to 10 tokens" in longer.notes


def test_one_label_everywhere_is_noted():
    encoded = encode_questions([Question("a", None, ("x", "y"), 1)] * 2, Letters(), max_length=10)
    assert encoded.notes == ("the same choice is right everywhere",)


def test_batches_have_choices_as_an_axis():
    questions = [Question("ab", None, tuple("xyz"[: 2 + number % 2]), number % 2) for number in range(5)]
    encoded = encode_questions(questions, Letters(), max_length=16)
    batch = next(FinetuneBatches(encoded, batch_size=4, max_length=16, seed=0))
    assert batch["input_ids"].shape == (4, 3, 16)
    seen = [numbers for numbers, _ in evaluation_batches(encoded, batch_size=2, max_length=16)]
    assert sorted(np.concatenate(seen).tolist()) == list(range(5))


# -------------------------------------------------------------------------------------------------------- objective

REAL = jnp.array([[1, 1, 0], [1, 1, 1]])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_choices_that_a_question_does_not_have_count_for_nothing(smoothing):
    """The loss of a padded question is that of the question alone."""
    objective = Choice(label_smoothing=smoothing)
    logits = jax.random.normal(jax.random.key(0), (2, 3))
    batch = {"real": REAL, "labels": jnp.array([1, 2]), "input_ids": jnp.zeros((2, 3, 4), int)}
    total, count = objective.loss(HeadOutput(logits), batch)
    alone = [losses.classification(logits[:1, :2], jnp.array([1]), smoothing=smoothing)[0]]
    alone.append(losses.classification(logits[1:], jnp.array([2]), smoothing=smoothing)[0])
    np.testing.assert_allclose(total, sum(alone), rtol=1e-5)
    assert count == objective.count(batch) == 2
    gradient = jax.grad(lambda logits: objective.loss(HeadOutput(logits), batch)[0])(logits)
    assert gradient[0, 2] == 0
    probabilities = objective.predict(HeadOutput(logits.at[0, 2].set(99)), batch)["probabilities"]
    assert probabilities[0, 2] == 0
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, rtol=1e-6)


@pytest.mark.parametrize("loss", ["symmetric_kl", "kl", "mse"])
def test_sift_takes_masked_choices(loss):
    objective, batch = Choice(), {"real": REAL}
    clean = jax.random.normal(jax.random.key(0), (2, 3))
    answers, weight = objective.answers(HeadOutput(clean), batch)
    assert weight is None

    def perturbed(params, delta, key):
        del params, key
        return objective.answers(HeadOutput(clean + delta.sum(axis=(1, 2)).reshape(2, 3)), batch)[0]

    delta = jnp.arange(6.0).reshape(6, 1, 1) / 10
    total, _ = sift.adversarial_loss(
        perturbed, {}, answers, delta, SiftConfig(weight=1, loss=loss), key=jax.random.key(1)
    )
    assert 0 < total < 10


def test_scores_and_records(read):
    task = read([row(2), row(0, options=("u", "v"))], test=[{"text": "t", "choices": ["a", "b"]}])
    found = [{"probabilities": np.array(shares)} for shares in ([0.1, 0.2, 0.7], [0.25, 0.75, 0.0])]
    assert task.score("train", found) == {"accuracy": 0.5}
    assert list(task.records("train", found))[1] == {
        "text": "ctx",
        "choices": ["u", "v"],
        "label": 0,
        "prediction": 1,
        "probabilities": [0.25, 0.75],
    }
    with pytest.raises(ValueError, match="the test split has no labels"):
        task.score("test", found[:1])
    assert "label" not in next(task.records("test", [{"probabilities": np.array([0.5, 0.5])}]))
    found[1]["probabilities"][0] = np.nan
    with pytest.raises(ValueError, match="of question 1 are not finite; the model has diverged"):
        task.score("train", found)


def test_the_kind_must_fit_the_set(tmp_path):
    config = finetune_config(output=tmp_path, model=tmp_path, train="tfds:glue/sst2", kind="choice")
    with pytest.raises(ValueError, match="is a set of kind 'classification', which does not go with kind 'choice'"):
        choices.load(config, SimpleNamespace())


# ------------------------------------------------------------------------------------------------------------- runs


def test_finetuning_learns_to_choose(small_model: Path, tmp_path: Path):
    """The woman is right, wherever she stands: any model that trains at all finds her. Some have two choices."""
    people = ["the woman", "the man", "a dog"]
    for split in ("train", "dev"):
        rows = []
        for number in range(48):
            options = people[: 2 + number % 2]
            options = options[number % len(options) :] + options[: number % len(options)]
            rows.append({"text": "Who was very happy?", "choices": options, "label": options.index("the woman")})
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = finetune_config(
        output=tmp_path / "run",
        model=small_model,
        kind="choice",
        train=str(tmp_path / "train.jsonl"),
        validation=str(tmp_path / "dev.jsonl"),
        max_length=32,
        batch_size=16,
        steps=40,
        optimizer=OptimizerConfig(learning_rate=3e-3),
        label_smoothing=0.1,
        sift=SiftConfig(weight=0.5),
    )
    results = finetune.main(config)
    assert results["validation"]["accuracy"] == 1
    assert finetune.main(config) == results
    with pytest.raises(ValueError, match="choices_columns"):
        finetune.main(changed(config, choices_columns=("choices",)))
