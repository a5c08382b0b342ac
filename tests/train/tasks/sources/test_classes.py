"""Tests of the choice of classes: given, of the model, declared or found in the data."""

import pytest

from deberta_jax.errors import UserError
from deberta_jax.train.tasks.sources.classes import ClassChoice, Classes, Head, choose_classes, match_names

NLI = ("contradiction", "neutral", "entailment")


def choose(
    train: str,
    *,
    validation: str = "",
    test: str = "",
    given: tuple[str, ...] = (),
    head: Head = Head(),  # noqa: B008 - frozen
    declared: tuple[str, ...] = (),
) -> Classes:
    """Returns the classes for labels that are separated by commas."""
    splits = {"train": train, "validation": validation, "test": test}
    labels = {name: set(split.split(",")) if split else set() for name, split in splits.items()}
    return choose_classes(labels, ClassChoice(given, head, declared, sorted), table="a.tsv")


def named(*names: str) -> Head:
    return Head(len(names), names)


HEADS = {  # labels of training, classifier of the model, classes of the task
    "another order": ("INJECTION,SAFE", named("SAFE", "INJECTION"), ("SAFE", "INJECTION")),
    "another case": ("injection,Safe", named("SAFE", "INJECTION"), ("SAFE", "INJECTION")),
    "spacing": ("not entailment,entailment ", named("entailment", "not_entailment"), ("entailment", "not_entailment")),
    "unicode": ("cafe\u0301,tea", named("tea", "caf\u00e9"), ("tea", "caf\u00e9")),
    "fewer": ("entailment,neutral", named(*NLI), NLI),
    "one": ("neutral", named(*NLI), NLI),
    "tags": ("O,B-PER", named("O", "B-PER", "I-PER"), ("O", "B-PER", "I-PER")),
    "another scheme": ("O,S-PER", named("O", "B-PER", "I-PER"), ("O", "S-PER")),
    "more": ("entailment,neutral,maybe", named(*NLI), ("entailment", "maybe", "neutral")),
    "other names": ("neg,pos", named("SAFE", "INJECTION"), ("neg", "pos")),
    "numbers": ("0,1", named("SAFE", "INJECTION"), ("SAFE", "INJECTION")),
    "first and last number": ("0,2", named(*NLI), NLI),
    "some numbers": ("0,1,3", named("a", "b", "c", "d", "e"), ("a", "b", "c", "d", "e")),
    "numbers of another task": ("0,1", named(*NLI), ("0", "1")),
    "numbers from 1": ("1,2", named("SAFE", "INJECTION"), ("1", "2")),
    "names that are numbers": ("1,2,3", named("3", "2", "1"), ("3", "2", "1")),
    "numbers beside names": ("0,1,2", named("1", "2", "3"), ("0", "1", "2")),
    "placeholders": ("LABEL_1,label_0", named("SAFE", "INJECTION"), ("SAFE", "INJECTION")),
    "unnamed": ("pos,neg", Head(2), ("neg", "pos")),
    "unnamed numbers": ("0,2", Head(3), ("0", "1", "2")),
    "unnamed placeholders": ("LABEL_2,LABEL_10", Head(11), tuple(f"LABEL_{index}" for index in range(11))),
    "one output": ("0,1", Head(1), ("0", "1")),
    "one name": ("toxic,fine", named("toxic"), ("fine", "toxic")),
}


@pytest.mark.parametrize(("labels", "head", "names"), HEADS.values(), ids=HEADS)
def test_a_head_that_has_every_label_of_training_keeps_its_classes(labels, head, names):
    classes = choose(labels, head=head)
    assert classes.names == names
    assert {classes.index(label) for label in labels.split(",")} <= set(range(len(names)))


def test_labels_find_their_rows_of_the_head():
    head = named("SAFE", "INJECTION")
    assert choose("injection,Safe", head=head).indices == {"injection": 1, "Safe": 0}
    assert choose("0,1", validation="1", head=head).indices == {"0": 0, "1": 1}
    assert choose("LABEL_1,LABEL_0", head=head).indices == {"LABEL_1": 1, "LABEL_0": 0}
    pair = choose("pos ,pos,NEG", head=named("neg", "pos"))
    assert pair.indices == {"pos ": 1, "pos": 1, "NEG": 0}
    both = choose("pos ,pos", head=named("pos", "pos "))  # the model itself has both
    assert both.indices == {"pos": 0, "pos ": 1}


def test_the_order_of_the_model_comes_before_the_official_one():
    classes = choose("neutral,entailment", declared=NLI, head=named("ENTAILMENT", "NEUTRAL", "CONTRADICTION"))
    assert classes.names == ("ENTAILMENT", "NEUTRAL", "CONTRADICTION")
    assert choose("neutral,entailment", declared=NLI, head=named("SAFE", "INJECTION")).names == NLI
    assert choose("neutral,entailment", declared=NLI).names == NLI


def test_the_list_of_the_user_comes_first():
    head = named(*NLI)
    given = ("entailment", "neutral", "contradiction")
    assert choose("neutral,entailment", given=given, head=head, declared=NLI).names == given
    assert choose("1,0", given=("negative", "positive")).indices == {"0": 0, "1": 1}
    assert choose("1,0", given=NLI, head=head).indices == {"0": 0, "1": 1}  # the list says what the numbers mean
    joined = choose("pos ,pos,neg", given=("pos", "neg"))
    assert joined.indices == {"pos": 0, "pos ": 0, "neg": 1}
    with pytest.raises(UserError, match="label 'maybe' is not one of the given labels: yes, no"):
        choose("yes,no,maybe", given=("yes", "no")).index("maybe")
    with pytest.raises(UserError, match="label '2' is not one of the given labels: yes, no"):
        choose("0,1,2", given=("yes", "no")).index("2")


def test_labels_of_held_out_splits():
    found = choose("no,yes", validation="maybe,YES", test="never,maybe,No")
    assert found.names == ("maybe", "no", "yes")  # a class that only validation has is a class
    assert found.indices == {"no": 1, "yes": 2, "maybe": 0, "YES": 2, "No": 1, "never": 3}
    assert found.unseen == ("never",)  # one that only the test has counts as wrongly predicted
    assert found.notes["train"] == ()
    assert found.notes["validation"] == (
        "labels read by the classes' names: 'YES' as 'yes'",
        "no example in training of 'maybe'",
    )
    assert found.notes["test"] == (
        "labels read by the classes' names: 'No' as 'no'",
        "no example in training of 'maybe'",
        "'never' counted as wrongly predicted: not among the classes 'maybe', 'no', 'yes'",
    )
    kept = choose("no,yes", validation="maybe,no", head=named("yes", "no"))  # a trained head is not given up for it
    assert (kept.names, kept.unseen) == (("yes", "no"), ("maybe",))
    with pytest.raises(UserError, match="label 'maybe' is not a class of training: contradiction, neutral, entailment"):
        choose("neutral,entailment", validation="maybe", declared=NLI).index("maybe")


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("head", [Head(), Head(2, ("yes", "no"))], ids=["no head", "head"])
@pytest.mark.parametrize("labels", ["0", "0,1", "0,false"])
def test_a_split_with_other_labels_than_training_is_an_error(split, head, labels):
    """They are written otherwise; as classes or as wrong answers they would spoil the results."""
    classes = choose("no,yes", head=head, **{split: labels})
    assert set(classes.names) == {"no", "yes"}
    with pytest.raises(UserError, match=r"label '0' is not a class of training: (no, yes|yes, no)"):
        classes.index("0")


def test_a_single_new_label_may_be_all_that_a_split_has():
    assert choose("no,yes", validation="maybe", test="never").names == ("maybe", "no", "yes")


def test_similar_labels_are_different_classes_and_noted():
    classes = choose("neg,pos,pos ")
    assert classes.names == ("neg", "pos", "pos ")
    assert classes.notes["train"] == (
        "'pos', 'pos ' are 2 classes, though they differ only in case, spacing or Unicode form; name the classes "
        "with --labels to join them",
    )
    assert choose("Pos,pos,POS").notes["train"][0].startswith("'POS', 'Pos', 'pos' are 3 classes")
    assert choose("neg,pos").notes["train"] == ()


def test_notes_about_a_head_name_what_training_lacks():
    assert choose("entailment,neutral", head=named(*NLI)).notes["train"] == ("no example of 'contradiction'",)
    assert choose("0,1", head=named("SAFE", "INJECTION")).notes["train"] == (
        "labels read by the classes' names: '0' as 'SAFE', '1' as 'INJECTION'",
    )


def test_one_label_needs_classes_from_elsewhere():
    for labels, message in (("x", "only one class, 'x'"), ("", "no labels")):
        with pytest.raises(UserError, match=rf"a\.tsv has {message}; training needs at least two classes"):
            choose(labels)
    assert choose("x", given=("x", "y")).names == ("x", "y")


def test_names_match_in_any_case_and_spacing_if_only_one_does():
    assert match_names(["a b", "A_B ", "a\u200bb", "ab"], ["A-B", "AB"]) == {
        "a b": 0,
        "A_B ": 0,
        "a\u200bb": 1,
        "ab": 1,
    }
    assert match_names(["POS"], ["Pos", "pos"]) == {}
    assert match_names(["-1", "1"], ["1", "-1"]) == {"-1": 1, "1": 0}
