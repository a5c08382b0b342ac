"""The weights of the classes in a loss."""

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from deberta_jax.errors import UserError
from deberta_jax.train.tasks.class_weights import class_weights, weights_array

NAMES = ("no", "a=b", "yes")
COUNTS = np.array([10, 20, 70])


def test_weights_have_three_forms() -> None:
    assert class_weights((), NAMES, COUNTS) == ()
    assert weights_array(()) is None
    assert class_weights(("1", "0.5", "2e1"), NAMES, COUNTS) == (1, 0.5, 20)
    assert class_weights(("a=b=3", "yes=0.5"), NAMES, COUNTS) == (1, 3, 0.5)
    labels = np.repeat(np.arange(3), COUNTS)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert class_weights(("balanced",), NAMES, COUNTS) == pytest.approx(tuple(expected))
    assert class_weights(("balanced",), NAMES, COUNTS, examples=80) == pytest.approx((7, 3, 1 / 7))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("1", "2"), "2 numbers for 3 classes .* give one for each class, LABEL=WEIGHT, or balanced"),
        (("1", "x", "2"), "class_weights has 'x'; a weight is a number above 0"),
        (("0", "1", "2"), "class_weights has '0'; a weight is a number above 0"),
        (("nan", "1", "2"), "class_weights has 'nan'"),
        (("maybe=2",), "names 'maybe', which is not one of the classes 'no', 'a=b', 'yes'"),
        (("no=2", "no=3"), "names 'no' twice"),
        (("no=2", "3"), "has '3' among LABEL=WEIGHT; write all of them in one form"),
        (("balanced", "no=2"), "has 'balanced' among LABEL=WEIGHT"),
    ],
)
def test_weights_that_cannot_be_used_are_named(given: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        class_weights(given, NAMES, COUNTS)


def test_balanced_weights_need_examples_of_every_class() -> None:
    with pytest.raises(UserError, match="training examples of every class, and there are none of 'yes'"):
        class_weights(("balanced",), NAMES, np.array([3, 4, 0]))
    with pytest.raises(UserError, match="needs training examples without the label 'a=b', which all of them have"):
        class_weights(("balanced",), NAMES, np.array([3, 9, 1]), examples=9)
