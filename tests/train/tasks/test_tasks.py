"""Fine-tuning data: sources, labels, encoding and batches, and one clear line for everything that can be wrong."""

import collections
import dataclasses
import gzip
import hashlib
import itertools
import json
import zipfile
from unittest import mock

import numpy as np
import pytest

from deberta_jax.train.tasks.batches import FinetuneBatches, evaluation_batches, padded_length
from deberta_jax.train.tasks.classification.task import EncodedExamples, Example, encode_examples, load_examples
from deberta_jax.train.tasks.sources.published import PUBLISHED

# ------------------------------------------------------------------------------------------------------------ files


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


TSV = 'text\tlabel\nsay "hi\tyes\nbad\tno\n'


def test_tsv_has_no_quoting(write):
    task = load_examples(write("films.tsv", TSV))
    assert task.splits["train"] == (Example('say "hi', None, 1), Example("bad", None, 0))
    assert (task.name, task.label_names, task.metrics) == ("films", ("no", "yes"), ("accuracy", "macro_f1"))
    assert set(task.splits) == {"train"}


def test_tsv_keeps_characters_that_only_look_like_line_ends(write):
    task = load_examples(write("a.tsv", "text\tlabel\r\none\u2028two\x0bthree\tyes\r\nb\tno\r\n"))
    assert [example.text for example in task.splits["train"]] == ["one\u2028two\x0bthree", "b"]


def test_csv_follows_rfc_4180(write):
    content = '\ufefftext,label,pair\n"a, ""b""\nc",x,"p"\nd,y,q'
    task = load_examples(write("a.csv", content), pair_column="pair")
    assert task.splits["train"] == (Example('a, "b"\nc', "p", 0), Example("d", "q", 1))


def test_csv_takes_long_documents(write):
    task = load_examples(write("a.csv", f"text,label\n{'word ' * 100_000},x\nb,y\n"))
    assert len(task.splits["train"][0].text) == 500_000


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".jsonl.gz"])
def test_json_lines(write, suffix):
    rows = [{"question": "a\u00e9", "label": True, "more": 1}, {"question": "b", "label": False}]
    content = "\n".join(map(json.dumps, rows)).encode()
    content = gzip.compress(content) if suffix.endswith(".gz") else content
    task = load_examples(write(f"a{suffix}", content), text_column="question")
    assert task.label_names == ("false", "true")
    assert task.splits["train"] == (Example("aé", None, 1), Example("b", None, 0))


def test_integer_labels_sort_as_numbers(write):
    task = load_examples(write("a.tsv", "text\tlabel\na\t10\nb\t9\nc\t-1\n"))
    assert task.label_names == ("-1", "9", "10")
    assert [example.label for example in task.splits["train"]] == [2, 1, 0]


def test_label_names_can_be_given(write):
    train = write("a.tsv", TSV)
    assert load_examples(train, label_names=("yes", "no", "maybe")).splits["train"][0].label == 0
    with pytest.raises(ValueError, match=r"a\.tsv, line 3: label 'no' is not a class of training: yes, nay"):
        load_examples(train, label_names=("yes", "nay"))
    with pytest.raises(ValueError, match="repeat a name"):
        load_examples(train, label_names=("yes", "yes"))


def test_regression(write):
    task = load_examples(write("a.tsv", "text\tlabel\na\t2.5\nb\t-1\n"), kind="regression")
    assert (task.label_names, task.metrics) == ((), ("pearson", "spearman"))
    assert [example.label for example in task.splits["train"]] == [2.5, -1.0]
    assert all(isinstance(example.label, float) for example in task.splits["train"])
    with pytest.raises(ValueError, match="regression, which has no classes"):
        load_examples(write("a.tsv", "text\tlabel\na\t2.5\n"), kind="regression", label_names=("a", "b"))


def test_validation_and_test_share_the_classes_of_training(write):
    validation = write("validation.csv", "label,text\nno,v\n")
    task = load_examples(write("a.tsv", TSV), validation=validation, test=write("test.tsv", "id\ttext\n0\tt\n"))
    assert task.splits["validation"] == (Example("v", None, 0),)
    assert task.splits["test"] == (Example("t", None, None),)  # a test set may leave its labels out
    labeled = load_examples(write("a.tsv", TSV), test=validation)
    assert labeled.splits["test"] == (Example("v", None, 0),)


BAD_FILES = {
    "suffix": ("a.txt", TSV, r"unknown suffix '\.txt'; give \.tsv, \.csv, \.jsonl, \.json"),
    "no column": ("a.tsv", "sentence\tlabel\na\t0\n", r"line 2: no column 'text'; the columns are 'sentence', 'label'"),
    "no json key": ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}', r"line 2: no column 'label'; .* 'text'"),
    "short row": ("a.tsv", TSV + "short\n", r"a\.tsv, line 4: 1 fields, but the header has 2"),
    "long csv row": ("a.csv", 'text,label\n"a\nb",x\nc,d,e\n', r"a\.csv, line 4: 3 fields, but the header has 2"),
    "blank line": ("a.tsv", "text\tlabel\na\tx\n\nb\ty\n", r"line 3: 1 fields"),
    "open quote": ("a.csv", 'text,label\na,x\n"b,y\nc,z\n', r"a\.csv, line 3: unexpected end of data"),
    "twin columns": ("a.tsv", "text\ttext\tlabel\n", r"line 1: a column name occurs twice"),
    "bytes": ("a.tsv", b"text\tlabel\na\xff\t0\n", r"a\.tsv: byte 0xff at offset 12 is not UTF-8"),
    "nul": ("a.tsv", b"text\tlabel\na\0\t0\n", r"a\.tsv: NUL byte at offset 12, line 2"),
    "utf-16": ("a.tsv", TSV.encode("utf-16"), r"NUL byte|not UTF-8"),
    "json nul": ("a.jsonl", r'{"text": "a\u0000", "label": 1}', r"line 1: column 'text' holds a NUL"),
    "half pair": ("a.jsonl", r'{"text": "a\ud800", "label": 1}', r"line 1: .*half a surrogate pair"),
    "empty": ("a.tsv", "\n", r"a\.tsv is empty"),
    "only header": ("a.tsv", "text\tlabel\n", r"a\.tsv has no rows"),
    "bad gzip": ("a.tsv.gz", TSV, r"not a whole gzip file"),
    "cut gzip": ("a.tsv.gz", gzip.compress(TSV.encode())[:-9], r"not a whole gzip file"),
    "json array": ("a.json", '[{"text": "a", "label": 1}]', r"line 1: not a JSON object; write one object a line"),
    "not json": ("a.jsonl", '{"text": "a", "label": 1}\nnope', r"line 2: not JSON"),
    "number for text": ("a.jsonl", '{"text": 3, "label": 1}', r"line 1: column 'text' holds 3, not text"),
    "one class": ("a.tsv", "text\tlabel\na\tx\nb\tx\n", r"a\.tsv has only one class, 'x'; training needs at least two"),
    "no label": ("a.tsv", "text\tlabel\na\tx\nb\t\n", r"line 3: the label is empty"),
    "float label": ("a.jsonl", '{"text": "a", "label": 1.5}', r"line 1: label 1\.5 is not a class.*'regression'"),
    "null label": ("a.jsonl", '{"text": "a", "label": null}', r"line 1: label None is not a class"),
    "blank text": ("a.tsv", "text\tlabel\na\tx\n  \ty\n", r"a\.tsv, line 3: column 'text' is empty"),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files(write, name, content, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_examples(write(name, content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("label", ["nan", "inf", "1e999", "", "good", "True"])
def test_scores_must_be_finite_numbers(write, label):
    with pytest.raises(ValueError, match=rf"a\.tsv, line 3: label '{label}' is not a finite number"):
        load_examples(write("a.tsv", f"text\tlabel\na\t0.5\nb\t{label}\n"), kind="regression")


def test_bad_held_out_files(write):
    train = write("a.tsv", TSV)
    with pytest.raises(ValueError, match=r"v\.tsv, line 3: label 'perhaps' is not a class of training: no, yes"):
        load_examples(train, validation=write("v.tsv", "text\tlabel\na\tno\nb\tperhaps\n"))
    with pytest.raises(ValueError, match=r"v\.tsv, line 2: no column 'label'"):
        load_examples(train, validation=write("v.tsv", "text\nonly\n"))
    with pytest.raises(ValueError, match=r"t\.jsonl, line 2: row 1 and this one differ"):
        load_examples(train, test=write("t.jsonl", '{"text": "a"}\n{"text": "b", "label": "no"}'))
    with pytest.raises(ValueError, match=r"p\.tsv, line 2: column 'more' is empty"):
        load_examples(write("p.tsv", "text\tmore\tlabel\na\t\tno\nb\tc\tyes\n"), pair_column="more")
    with pytest.raises(FileNotFoundError, match=r"missing\.tsv: no such file"):
        load_examples(train, validation="missing.tsv")


# ---------------------------------------------------------------------------------------------- tensorflow_datasets

MNLI_COLUMNS = "sentence1\tsentence2\tgold_label\n"
MNLI_ROWS = "".join(f"p {label}\th {label}\t{label}\n" for label in ("entailment", "neutral", "contradiction"))
MRPC_COLUMNS = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
ARCHIVES = {
    "SST-2.zip": {
        "SST-2/train.tsv": 'sentence\tlabel\na "good film\t1\nbad\t0\ncafé\t1\n',
        "SST-2/dev.tsv": "sentence\tlabel\nfair\t1\n",
        "SST-2/test.tsv": "index\tsentence\n0\thidden\n",
    },
    "MNLI.zip": {
        "MNLI/train.tsv": MNLI_COLUMNS + MNLI_ROWS,
        "MNLI/dev_matched.tsv": MNLI_COLUMNS + MNLI_ROWS,
        "MNLI/dev_mismatched.tsv": MNLI_COLUMNS + "other p\tother h\tneutral\n",
        "MNLI/test_matched.tsv": "sentence1\tsentence2\nt\tu\n",
        "MNLI/test_mismatched.tsv": "sentence1\tsentence2\nv\tw\n",
    },
    "STS-B.zip": {
        "STS-B/train.tsv": "sentence1\tsentence2\tscore\na\tb\t4.5\nc\t\t0.0\n",
        "STS-B/dev.tsv": "sentence1\tsentence2\tscore\na\tb\t5.0\n",
        "STS-B/test.tsv": "sentence1\tsentence2\ne\tf\n",
    },
}
MRPC = {
    "msr_paraphrase_train.txt": f"\ufeff{MRPC_COLUMNS}1\t1\t2\ta\tsame a\n0\t3\t4\tb\tc\n1\t5\t6\td\tsame d\n",
    "msr_paraphrase_test.txt": f"{MRPC_COLUMNS}1\t7\t8\te\tsame e\n",
    "data_mrpc_dev_ids.tsv": "5\t6\n",
}


@pytest.fixture(scope="module")
def glue_archives(tmp_path_factory):
    """A folder of small archives in the published layout, their checksums by URL, and a folder to prepare sets in."""
    from tensorflow_datasets.text.glue import Glue

    manual = tmp_path_factory.mktemp("manual")
    for name, members in ARCHIVES.items():
        with zipfile.ZipFile(manual / name, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, content)
    for name, content in MRPC.items():
        (manual / name).write_text(content, encoding="utf-8")
    infos = {
        url: dataclasses.replace(info, size=len(data), checksum=hashlib.sha256(data).hexdigest())
        for url, info in Glue.url_infos.items()
        if info.filename in ARCHIVES | MRPC
        for data in [(manual / info.filename).read_bytes()]
    }
    return infos, {"manual_dir": manual, "data_dir": tmp_path_factory.mktemp("data")}


@pytest.fixture
def fake_glue(glue_archives):
    from tensorflow_datasets.text.glue import Glue

    infos, folders = glue_archives
    with mock.patch.object(Glue, "url_infos", infos):
        yield folders


def test_sst2_is_prepared_and_read(fake_glue):
    task = load_examples("tfds:glue/sst2", test="tfds:glue/sst2", **fake_glue)
    assert (task.name, task.label_names, task.metrics) == ("glue/sst2", ("negative", "positive"), ("accuracy",))
    assert set(task.splits["train"]) == {
        Example('a "good film', None, 1),
        Example("bad", None, 0),
        Example("café", None, 1),
    }
    assert task.splits["validation"] == (Example("fair", None, 1),)
    assert task.splits["test"] == (Example("hidden", None, None),)
    # Prepared once: the archives are no longer needed.
    assert load_examples("tfds:glue/sst2", data_dir=fake_glue["data_dir"]).splits["train"] == task.splits["train"]


def test_mnli_is_in_the_official_order(fake_glue):
    """tensorflow_datasets numbers entailment 0, the official DeBERTa tasks number contradiction 0."""
    task = load_examples("tfds:glue/mnli", test="tfds:glue/mnli@test_mismatched", **fake_glue)
    assert task.label_names == ("contradiction", "neutral", "entailment")
    expected = {Example(f"p {name}", f"h {name}", label) for label, name in enumerate(task.label_names)}
    assert set(task.splits["train"]) == expected
    assert "validation" in task.splits
    assert set(task.splits["validation"]) == expected
    assert task.splits["validation_mismatched"] == (Example("other p", "other h", 1),)
    assert task.splits["test"] == (Example("v", "w", None),)
    swapped = load_examples("tfds:glue/mnli", label_names=("entailment", "neutral", "contradiction"), **fake_glue)
    assert {(example.text, example.label) for example in swapped.splits["train"]} == {
        ("p entailment", 0),
        ("p neutral", 1),
        ("p contradiction", 2),
    }


def test_mrpc_and_stsb(fake_glue):
    mrpc = load_examples("tfds:glue/mrpc", **fake_glue)
    assert set(mrpc.splits["train"]) == {Example("a", "same a", 1), Example("b", "c", 0)}
    assert mrpc.splits["validation"] == (Example("d", "same d", 1),)
    assert mrpc.metrics == ("accuracy", "f1")
    stsb = load_examples("tfds:glue/stsb", test="tfds:glue/stsb", **fake_glue)
    assert (stsb.metrics, stsb.label_names) == (("pearson", "spearman"), ())
    # An empty text is refused in a file, but a published set is taken as it is.
    assert set(stsb.splits["train"]) == {Example("a", "b", 4.5), Example("c", "", 0.0)}
    assert stsb.splits["test"] == (Example("e", "f", None),)


def test_a_file_can_go_with_a_published_set(fake_glue, write):
    task = load_examples(
        write("a.csv", "words,class\nx,positive\ny,negative\n"),
        validation="tfds:glue/sst2@train",
        text_column="words",
        label_column="class",
        **fake_glue,
    )
    assert task.splits["train"] == (Example("x", None, 1), Example("y", None, 0))
    assert "validation" in task.splits
    assert len(task.splits["validation"]) == 3


def test_other_sets_need_their_columns(tmp_path):
    """A prepared folder of a set that the package has no code for, with named classes and another text column."""
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
    with pytest.raises(ValueError, match=r"record 0: no column 'text'; the columns are 'review', 'score', 'stars'"):
        load_examples("tfds:reviews", data_dir=tmp_path)
    task = load_examples("tfds:reviews", text_column="review", label_column="stars", data_dir=tmp_path)
    assert task.label_names == ("low", "high")
    assert {(example.text, example.label) for example in task.splits["train"]} == {("fine", 1), ("poor", 0)}
    scores = load_examples(
        "tfds:reviews", text_column="review", label_column="score", kind="regression", data_dir=tmp_path
    )
    assert {(example.text, example.label) for example in scores.splits["train"]} == {("fine", 0.5), ("poor", -1.0)}
    with pytest.raises(ValueError, match=r"record 0: label .* is not a class name"):
        load_examples("tfds:reviews", text_column="review", label_column="score", data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"has no split 'test'; there are train: write tfds:reviews@SPLIT"):
        load_examples(
            "tfds:reviews", test="tfds:reviews", text_column="review", label_column="stars", data_dir=tmp_path
        )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tfds:glue/sst", r"'tfds:glue/sst' is not known; there are tfds:glue/cola, tfds:glue/sst2"),
        ("tfds:", r"'tfds:' is not a source; write tfds:NAME"),
        ("tfds:glue/sst2@", r"is not a source"),
        ("tfds:no_such_set", r"tfds:no_such_set: Dataset no_such_set not found"),
        ("tfds:glue/sst2@dev", r"has no split 'dev'; there are .*validation"),
    ],
)
def test_bad_tfds_sources(fake_glue, source, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_examples(source, **fake_glue)
    assert "\n" not in str(caught.value)


def test_a_failed_download_says_what_to_do(tmp_path):
    from tensorflow_datasets.core.download.downloader import _Downloader

    refused = mock.patch.object(_Downloader, "download", side_effect=ConnectionError("no route\nto host"))
    with refused, pytest.raises(ValueError, match=r"put RTE\.zip into .*manual or give manual_dir") as caught:
        load_examples("tfds:glue/rte", data_dir=tmp_path)
    assert "(ConnectionError: no route to host)" in str(caught.value)


def test_a_set_prepared_as_tfrecord_is_named(fake_glue, tmp_path):
    load_examples("tfds:glue/sst2", data_dir=tmp_path, manual_dir=fake_glue["manual_dir"])
    info = next(tmp_path.rglob("dataset_info.json"))
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="prepared as TFRecord, which only TensorFlow reads"):
        load_examples("tfds:glue/sst2", data_dir=tmp_path)


def test_the_table_agrees_with_tensorflow_datasets_about_glue():
    from tensorflow_datasets.text.glue import Glue

    configs = {f"glue/{config.name}": config for config in Glue.BUILDER_CONFIGS}
    tasks = {name: task for name, task in PUBLISHED.items() if name.startswith("glue/")}
    assert set(tasks) == set(configs)
    for name, task in tasks.items():
        assert sorted(task.label_names) == sorted(configs[name].label_classes or ()), name
        columns = {column for role, column in task.columns.items() if role != "label"}
        assert columns == set(configs[name].text_features), name
        assert set(task.files) <= {info.filename for info in Glue.url_infos.values()}, name


def test_regression_is_refused_for_a_glue_classification(fake_glue):
    with pytest.raises(ValueError, match="is a classification task"):
        load_examples("tfds:glue/sst2", kind="regression", **fake_glue)


# ---------------------------------------------------------------------------------------------------------- batches


@dataclasses.dataclass
class FakeEncoding:
    input_ids: list[int]
    token_type_ids: list[int]


class WordLengths:
    """[CLS] a [SEP] b [SEP], cut at the end; a word's id is its length plus 10."""

    def __call__(self, text, pair=None, *, max_length):
        first = [1, *(10 + len(word) for word in text.split()), 2]
        second = [*(10 + len(word) for word in pair.split()), 2] if pair is not None else []
        types = [0] * len(first) + [1] * len(second)
        return FakeEncoding((first + second)[:max_length], types[:max_length])


def encoded_rows(count, *, width=2):
    ids = np.arange(count * width, dtype=np.int32).reshape(count, width)
    return EncodedExamples(
        ids, np.zeros_like(ids), np.full(count, width, np.int32), np.arange(count, dtype=np.int32), 0
    )


def test_encode_examples():
    examples = [Example("a bcd", "ef", 1), Example("a b c d", "e", 0), Example("a", None, 2)]
    encoded = encode_examples(examples, WordLengths(), max_length=6)
    assert encoded.input_ids.dtype == encoded.labels.dtype == np.int32
    assert encoded.input_ids.tolist() == [[1, 11, 13, 2, 12, 2], [1, 11, 11, 11, 11, 2], [1, 11, 2, 0, 0, 0]]
    assert encoded.token_type_ids.tolist() == [[0, 0, 0, 0, 1, 1], [0] * 6, [0] * 6]
    assert encoded.lengths.tolist() == [6, 6, 3]
    assert encoded.labels.tolist() == [1, 0, 2]
    assert encoded.truncated == 1  # the first just fits
    assert encoded.batch(np.array([2]), length=4)["attention_mask"].tolist() == [[1, 1, 1, 0]]
    assert encoded.notes == ("1 cut to 6 tokens",)


def test_encode_scores_and_unlabeled_examples():
    scores = encode_examples([Example("a", None, 0.5)], WordLengths(), max_length=4)
    assert scores.labels.dtype == np.float32
    hidden = encode_examples([Example("a", None, None)], WordLengths(), max_length=4)
    assert hidden.labels is None
    assert "labels" not in next(evaluation_batches(hidden, batch_size=1, max_length=4))[1]
    with pytest.raises(ValueError, match="1 of 2 examples have no label"):
        encode_examples([Example("a", None, None), Example("b", None, 1)], WordLengths(), max_length=4)
    with pytest.raises(ValueError, match="no examples"):
        encode_examples([], WordLengths(), max_length=4)
    with pytest.raises(ValueError, match="training needs labels"):
        FinetuneBatches(hidden, batch_size=1, max_length=4, seed=0)


def test_training_batches_are_static_and_int32():
    batch = next(FinetuneBatches(encoded_rows(5), max_length=2, batch_size=4, seed=0))
    assert {name: (value.shape, value.dtype.name) for name, value in batch.items()} == {
        "input_ids": ((4, 2), "int32"),
        "attention_mask": ((4, 2), "int32"),
        "token_type_ids": ((4, 2), "int32"),
        "labels": ((4,), "int32"),
    }
    assert batch["input_ids"][:, 0].tolist() == (2 * batch["labels"]).tolist()


def drawn(batches, count):
    return [next(batches)["labels"].tolist() for _ in range(count)]


def test_every_epoch_has_each_example_once_in_another_order():
    rows = np.concatenate(drawn(FinetuneBatches(encoded_rows(10), max_length=2, batch_size=4, seed=3), 5))
    first, second = rows[:10].tolist(), rows[10:].tolist()
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert drawn(FinetuneBatches(encoded_rows(10), max_length=2, batch_size=4, seed=4), 1)[0] != first[:4]


def test_resuming_equals_never_having_stopped():
    whole = drawn(FinetuneBatches(encoded_rows(7), max_length=2, batch_size=4, seed=3), 8)
    stopped = FinetuneBatches(encoded_rows(7), max_length=2, batch_size=4, seed=3)
    assert drawn(stopped, 3) == whole[:3]
    state = json.loads(json.dumps(stopped.get_state()))
    assert state == {"global_next_index": 12}
    resumed = FinetuneBatches(encoded_rows(7), max_length=2, batch_size=4, seed=3)
    next(resumed)  # a used iterator goes to the position too
    resumed.set_state(state)
    assert drawn(resumed, 5) == whole[3:]


def test_hosts_share_each_global_batch_and_may_change_in_number():
    whole = drawn(FinetuneBatches(encoded_rows(9), max_length=2, batch_size=4, seed=3), 6)
    hosts = [FinetuneBatches(encoded_rows(9), max_length=2, batch_size=4, seed=3, rows=rows) for rows in part(2)]
    parts = [drawn(host, 3) for host in hosts]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole[:3]
    assert hosts[0].get_state() == hosts[1].get_state() == {"global_next_index": 12}
    four = [FinetuneBatches(encoded_rows(9), max_length=2, batch_size=4, seed=3, rows=rows) for rows in part(4)]
    for host in four:
        host.set_state(hosts[0].get_state())
    parts = [drawn(host, 3) for host in four]
    assert [list(itertools.chain(*rows)) for rows in zip(*parts, strict=True)] == whole[3:]


def part(hosts):
    """The rows of each host of a batch of 4."""
    return np.arange(4).reshape(hosts, -1)


def test_the_rows_of_a_host_need_not_be_neighbors():
    """Nor are they on a torus of chips."""
    whole = drawn(FinetuneBatches(encoded_rows(9), max_length=2, batch_size=4, seed=3), 3)
    own = drawn(FinetuneBatches(encoded_rows(9), max_length=2, batch_size=4, seed=3, rows=np.array([0, 3])), 3)
    assert own == [[batch[0], batch[3]] for batch in whole]


def test_a_batch_may_be_larger_than_the_data():
    counts = collections.Counter(drawn(FinetuneBatches(encoded_rows(3), max_length=2, batch_size=6, seed=0), 1)[0])
    assert counts == {0: 2, 1: 2, 2: 2}


@pytest.mark.parametrize("state", [{}, {"global_next_index": -1}, {"global_next_index": 1, "more": 2}, {"next": 1}])
def test_bad_states(state):
    with pytest.raises(ValueError, match="is not a position"):
        FinetuneBatches(encoded_rows(3), max_length=2, batch_size=2, seed=0).set_state(state)


@pytest.mark.parametrize(
    ("batch_size", "rows", "message"),
    [
        (0, None, "the global batch is 0 rows"),
        (4, [], "has rows 0 to 3; asked for"),
        (4, [3, 4], "has rows 0 to 3; asked for"),
    ],
)
def test_rows_that_a_batch_does_not_have(batch_size, rows, message):
    rows = rows if rows is None else np.array(rows, np.int64)
    with pytest.raises(ValueError, match=message):
        FinetuneBatches(encoded_rows(3), max_length=2, batch_size=batch_size, seed=0, rows=rows)
    with pytest.raises(ValueError, match=message):
        next(evaluation_batches(encoded_rows(3), batch_size=batch_size, max_length=2, rows=rows))


def whole_pass(count, *, rows=None):
    return list(evaluation_batches(encoded_rows(count), batch_size=4, max_length=2, rows=rows))


@pytest.mark.parametrize(("count", "batches"), [(1, 1), (4, 1), (5, 2), (8, 2)])
def test_evaluation_sees_each_example_once(count, batches):
    seen = whole_pass(count)
    assert len(seen) == batches
    assert all(batch["input_ids"].shape == (4, 2) for _, batch in seen)
    assert sorted(np.concatenate([numbers for numbers, _ in seen]).tolist()) == list(range(count))
    for numbers, batch in seen:
        assert batch["labels"].tolist() == numbers.tolist() + [numbers[-1]] * (4 - len(numbers))
        assert batch["attention_mask"].all()  # fillers are real rows: no fully masked attention


def test_evaluation_on_two_hosts_joins_to_that_of_one():
    hosts = [whole_pass(5, rows=rows) for rows in part(2)]
    for (numbers, batch), (ours, first), (theirs, second) in zip(whole_pass(5), *hosts, strict=True):
        assert numbers.tolist() == ours.tolist() == theirs.tolist()
        for name, value in batch.items():
            np.testing.assert_array_equal(value, np.concatenate([first[name], second[name]]))


# ---------------------------------------------------------------------------------------------------------- lengths


def rows_of_lengths(lengths, *, width):
    ids = np.ones((len(lengths), width), np.int32)
    labels = np.arange(len(lengths), dtype=np.int32)
    return EncodedExamples(ids, np.zeros_like(ids), np.array(lengths, np.int32), labels, 0)


@pytest.mark.parametrize(
    ("longest", "most", "padded"), [(1, 512, 64), (64, 512, 64), (65, 512, 128), (300, 320, 320), (20, 32, 32)]
)
def test_few_lengths_to_compile(longest, most, padded):
    assert padded_length(longest, most) == padded


def test_a_batch_is_as_long_as_its_longest_example_needs_on_every_host():
    encoded = rows_of_lengths([10, 60, 20, 65, 30, 40], width=200)
    seen = set()
    hosts = [FinetuneBatches(encoded, batch_size=2, max_length=200, seed=1, rows=np.array([row])) for row in (0, 1)]
    for _ in range(3):
        one, other = (next(host) for host in hosts)
        longest = max(encoded.lengths[one["labels"][0]], encoded.lengths[other["labels"][0]])
        assert one["input_ids"].shape == other["input_ids"].shape == (1, padded_length(longest, 200))
        seen.add(one["input_ids"].shape[1])
    assert seen == {64, 128}
    passes = evaluation_batches(encoded, batch_size=2, max_length=200)
    assert [(numbers.tolist(), batch["input_ids"].shape[1]) for numbers, batch in passes] == [
        ([0, 2], 64),
        ([4, 5], 64),
        ([1, 3], 128),
    ]


def grouped(lengths, *, batch, seed=3, epochs=2, start=0):
    batches = FinetuneBatches(
        rows_of_lengths(lengths, width=128), batch_size=batch, max_length=128, seed=seed, group=True
    )
    batches.set_state({"global_next_index": start})
    return drawn(batches, (epochs * len(lengths) - start) // batch)


def test_grouped_batches_hold_like_lengths_and_each_epoch_every_example():
    lengths = np.random.default_rng(0).integers(1, 128, 1000)
    batches = grouped(lengths, batch=8)
    order = np.concatenate(batches)
    assert sorted(order[:1000]) == sorted(order[1000:]) == list(range(1000))
    spread = [np.ptp(lengths[batch]) for batch in batches]
    assert np.median(spread) < 10  # of 400 sorted; at random it is about 100
    means = [lengths[batch].mean() for batch in batches[:50]]
    assert np.abs(np.corrcoef(means, np.arange(50))[0, 1]) < 0.5  # not from short to long
    assert grouped(lengths, batch=8, seed=4)[0] != batches[0]


def test_grouped_epochs_that_do_not_divide_resume_exactly():
    lengths = np.random.default_rng(0).integers(1, 128, 107)
    whole = grouped(lengths, batch=4, epochs=6)
    order = np.concatenate(whole)
    for epoch in range(5):
        assert sorted(order[epoch * 107 : (epoch + 1) * 107]) == list(range(107))
    assert len(set(order[5 * 107 :])) == len(order[5 * 107 :]) == 105  # the sixth, but for a batch that goes on
    assert grouped(lengths, batch=4, epochs=6, start=4 * 41) == whole[41:]
