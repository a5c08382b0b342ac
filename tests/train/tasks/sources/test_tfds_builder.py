"""Tests that sets of tensorflow_datasets are prepared and read without TensorFlow, and that failures are explained."""

from unittest import mock

import numpy as np
import pytest

from deberta_jax.errors import UserError
from deberta_jax.train.tasks.classification.examples import Example, load_examples
from deberta_jax.train.tasks.sources import source
from deberta_jax.train.tasks.sources.source import Source, open_table


def read(given, label_column="label", **folders):
    return list(open_table(Source.parse(given), label_column=label_column, **folders).rows)


def test_a_set_is_prepared_once(fake_tfds):
    rows = read("tfds:glue/sst2@train", **fake_tfds)
    assert [number for number, _ in rows] == [0, 1, 2]
    assert {cells["sentence"] for _, cells in rows} == {b'a "good film', b"bad", "café".encode()}
    prepared_only = {"data_dir": fake_tfds["data_dir"]}
    assert len(read("tfds:glue/sst2@train", **prepared_only)) == 3
    assert len(read("tfds:glue/sst2@train[:1]", **prepared_only)) == 1


@pytest.fixture
def reviews(tmp_path):
    """A prepared folder of a set that the package has no code for, with named classes and other columns."""
    import tensorflow_datasets as tfds

    class Reviews(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            stars = tfds.features.ClassLabel(names=["low", "high"])
            features = {"review": tfds.features.Text(), "stars": stars, "score": np.float32}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield 0, {"review": "fine", "stars": "high", "score": 0.5}
            yield 1, {"review": "poor", "stars": "low", "score": -1.0}

    Reviews(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    return tmp_path


def test_an_unpublished_set_is_read_by_its_columns(reviews):
    task = load_examples("tfds:reviews", text_column="review", label_column="stars", data_dir=reviews)
    assert task.label_names == ("low", "high")
    assert set(task.splits["train"]) == {Example("fine", None, 1), Example("poor", None, 0)}
    scores = {"text_column": "review", "label_column": "score", "data_dir": reviews}
    task = load_examples("tfds:reviews", kind="regression", **scores)
    assert {(example.text, example.label) for example in task.splits["train"]} == {("fine", 0.5), ("poor", -1.0)}
    with pytest.raises(UserError, match=r"record 0: label .* is not a class name"):
        load_examples("tfds:reviews", **scores)
    with pytest.raises(UserError, match=r"record 0: no column 'text'; the columns are 'review', 'score', 'stars'"):
        load_examples("tfds:reviews", data_dir=reviews)
    with pytest.raises(UserError, match=r"has no split 'test'; there are train: write tfds:reviews@SPLIT"):
        read("tfds:reviews@test", data_dir=reviews)


@pytest.mark.parametrize("at_once", [1, 1000])
def test_damaged_records_are_named(reviews, monkeypatch, at_once):
    monkeypatch.setattr(source, "_RECORDS_AT_ONCE", at_once)
    (records,) = reviews.rglob("*.array_record*")
    data = bytearray(records.read_bytes())
    position = data.find(b"review")
    data[position : position + 6] = b"REVIEW"
    records.write_bytes(data)
    with pytest.raises(UserError, match=r"tfds:reviews@train, record \d: damaged \(.*; delete .*reviews") as caught:
        read("tfds:reviews@train", data_dir=reviews)
    assert "\n" not in str(caught.value)


def test_a_damaged_description_of_a_set_is_named(reviews):
    (info,) = reviews.rglob("dataset_info.json")
    info.write_text("{")
    with pytest.raises(UserError, match=r"tfds:reviews@train: .*\(tensorflow_datasets "):
        read("tfds:reviews@train", data_dir=reviews)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("tfds:no_such_set@train", r"tfds:no_such_set@train: Dataset no_such_set not found"),
        ("tfds:glue/sst2:9.9.9@train", r"tfds:glue/sst2:9\.9\.9@train: Failed to construct dataset"),
        ("tfds:no such set@train", r"Parsing builder name string no such set failed"),
        ("tfds:glue/sst2@dev", r"has no split 'dev'; there are .*validation"),
    ],
)
def test_unknown_sets_and_splits_are_named(fake_tfds, given, message):
    with pytest.raises(UserError, match=message) as caught:
        read(given, **fake_tfds)
    assert "\n" not in str(caught.value)


def test_a_failed_download_tells_what_to_do(tmp_path):
    from tensorflow_datasets.core.download.downloader import _Downloader

    refused = mock.patch.object(_Downloader, "download", side_effect=ConnectionError("no route\nto host"))
    with refused, pytest.raises(UserError, match=r"put RTE\.zip into .*manual or give manual_dir") as caught:
        read("tfds:glue/rte@train", data_dir=tmp_path)
    assert "(ConnectionError: no route to host)" in str(caught.value)


@pytest.mark.parametrize("given", ["tfds:reviews@train", "tfds:glue/sst2@train"])
def test_a_set_prepared_as_tfrecord_is_named(reviews, fake_tfds, given):
    folders = {"data_dir": reviews, "manual_dir": fake_tfds["manual_dir"]}
    read(given, **folders)
    for info in reviews.rglob("dataset_info.json"):
        info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match="prepared as TFRecord, which only TensorFlow reads"):
        read(given, **folders)
