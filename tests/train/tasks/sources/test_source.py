"""Tests of sources: their names, their splits, and one clear line for each that cannot be used."""

import pytest

from deberta_jax.errors import UserError
from deberta_jax.train.tasks.sources.source import Source, columns_of, named_splits


def test_a_source_is_a_file_a_set_or_a_published_file():
    assert Source.parse("folder/train.tsv") == Source("folder/train.tsv", path="folder/train.tsv")
    assert Source.parse("C:train.tsv").path == "C:train.tsv"
    set_of_tfds = Source.parse("tfds:glue/mnli:2.0.0@test_matched")
    assert (set_of_tfds.tfds_name, set_of_tfds.split) == ("glue/mnli:2.0.0", "test_matched")
    published_file = Source.parse("super_glue/copa:a/train.jsonl")
    assert (published_file.format_name, published_file.path) == ("super_glue/copa", "a/train.jsonl")


def test_a_task_is_named_after_its_training_source():
    names = [Source.parse(given).name for given in ("a/films.tsv.gz", "tfds:glue/sst2@train", "anli/r1:train.jsonl")]
    assert names == ["films", "glue/sst2", "anli/r1"]


def test_a_version_belongs_to_each_builder():
    assert Source.parse("tfds:race:2.0.0").builders == ("race/high:2.0.0", "race/middle:2.0.0")
    assert Source.parse("tfds:reviews").builders == ("reviews",)


def test_validation_splits_of_a_published_set_are_the_default():
    splits = named_splits("tfds:glue/mnli", None, "tfds:glue/mnli")
    assert [(name, source.split, role) for name, source, role in splits] == [
        ("train", "train", "train"),
        ("validation", "validation_matched", "validation"),
        ("validation_mismatched", "validation_mismatched", "validation"),
        ("test", "test_matched", "test"),
    ]
    assert [name for name, _, _ in named_splits("a.tsv", None, None)] == ["train"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("tfds:", r"'tfds:' is not a source; write tfds:NAME"),
        ("tfds:glue/sst2@", r"is not a source"),
        ("glue/sst:train.tsv", r"'glue/sst:train\.tsv': 'glue/sst' is unknown; write NAME:FILE with one of glue/cola"),
        ("tfds:glue/sst", r"'tfds:glue/sst' is unknown; there are tfds:glue/cola, tfds:glue/sst2"),
        ("tfds:xnli", r"'tfds:xnli' is unknown; there are tfds:xnli/ar, tfds:xnli/bg"),
    ],
)
def test_bad_sources_are_named(given, message):
    with pytest.raises(UserError, match=message):
        named_splits(given, None, None)


def test_a_set_of_another_kind_is_refused():
    with pytest.raises(UserError, match=r"copa is a set of kind 'choice', which cannot be used for kind 'classificat"):
        columns_of(Source.parse("tfds:super_glue/copa"), "classification", {})
