"""Names with colons are read as a user means them, and weights and stages that make no sense are named."""

from fractions import Fraction

import pytest

from deberta_jax.errors import UserError
from deberta_jax.train.corpus_options import parse_stages, parse_weighted


@pytest.mark.parametrize(
    ("text", "name", "weight"),
    [
        ("rows", "rows", None),
        ("rows:0.3", "rows", "3/10"),
        ("rows:3", "rows", "3"),
        ("rows:1e-2", "rows", "1/100"),
        (r"C:\rows", r"C:\rows", None),
        (r"C:\rows:.5", r"C:\rows", "1/2"),
        ("gs://bucket/rows", "gs://bucket/rows", None),
        ("gs://bucket/rows:7", "gs://bucket/rows", "7"),
        ("s3://bucket/2024:01:rows", "s3://bucket/2024:01:rows", None),
        ("rows:2:1", "rows:2", "1"),
        ("rows:", "rows:", None),
        ("rows:1_0", "rows:1_0", None),
        ("rows:٣", "rows:٣", None),
    ],
)
def test_a_weight_is_the_number_after_the_last_colon(text, name, weight):
    assert parse_weighted(text) == (name, None if weight is None else Fraction(weight))


@pytest.mark.parametrize("weight", ["0", "-0.5", "nan", "inf", "-Infinity", "1e99", "1e-99", "0.0"])
def test_a_weight_that_is_none_is_named(weight):
    with pytest.raises(UserError, match=f"corpus 'a:{weight}' has the weight {weight}; it must be above 0"):
        parse_weighted(f"a:{weight}")


@pytest.mark.parametrize("text", ["", ":0.5"])
def test_an_empty_name_is_refused(text):
    with pytest.raises(UserError, match="has no folder; give FOLDER or FOLDER:WEIGHT"):
        parse_weighted(text)


def test_stages_take_the_steps_of_the_run():
    assert parse_stages(["128:90", "512:10"], 100) == ((128, 90), (512, 10))
    assert parse_stages(["128:90", "512"], 100) == ((128, 90), (512, 10))
    assert parse_stages(["256"], 100) == ((256, 100),)
    assert parse_stages([], 100) == ()


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (["128:90", "512:11"], "128:90, 512:11 does not fit into --steps 100; .* must add up to it, or leave out"),
        (["128:100", "512"], "128:100, 512 does not fit into --steps 100"),
        (["128:90", "512:-5"], "curriculum has -5 steps for length 512; it must be at least 1"),
        (["128:0", "512"], "curriculum has 0 steps for length 128; it must be at least 1"),
        (["128", "512:10"], "no steps for length 128; only the last stage may leave them out"),
        (["128:50", "128:50"], "the length 128 twice"),
        (["4:50", "128"], "the length 4; it must be at least 8"),
        (["-128:50"], "curriculum has '-128:50'; a stage is LENGTH:STEPS, such as 128:90000"),
        (["128:0.9"], "curriculum has '128:0.9'; a stage is LENGTH:STEPS"),
        (["rows"], "curriculum has 'rows'; a stage is"),
    ],
)
def test_stages_that_do_not_fit_are_named(stages, message):
    with pytest.raises(UserError, match=message):
        parse_stages(stages, 100)
