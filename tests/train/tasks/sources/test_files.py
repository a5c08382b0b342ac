"""Tests of the readers of local files: their rules, and one clear line for each way in which a file can be bad."""

import datetime
import decimal
import gzip
import json
from pathlib import Path

import pytest

from deberta_jax.errors import MissingFileError, UserError
from deberta_jax.train.tasks.sources.cells import parse_score, text_cell
from deberta_jax.train.tasks.sources.files import open_file

TSV = 'text\tlabel\nsay "hi\tyes\nbad\tno\n'


def rows_of(path, label_column="label"):
    return list(open_file(path, label_column=label_column).rows)


def test_tsv_has_no_quoting(write):
    assert rows_of(write("films.tsv", TSV)) == [
        (2, {"text": 'say "hi', "label": "yes"}),
        (3, {"text": "bad", "label": "no"}),
    ]


def test_tsv_keeps_characters_that_only_look_like_line_ends(write):
    rows = rows_of(write("a.tsv", "text\tlabel\r\none\u2028two\x0bthree\tyes\r\nb\tno\r\n"))
    assert [cells["text"] for _, cells in rows] == ["one\u2028two\x0bthree", "b"]


def test_csv_follows_rfc_4180(write):
    rows = rows_of(write("a.csv", '\ufefftext,label,pair\n"a, ""b""\nc",x,"p"\nd,y,q'))
    assert rows == [
        (2, {"text": 'a, "b"\nc', "label": "x", "pair": "p"}),
        (4, {"text": "d", "label": "y", "pair": "q"}),
    ]


def test_csv_accepts_long_documents(write):
    (_, first), _ = rows_of(write("a.csv", f"text,label\n{'word ' * 100_000},x\nb,y\n"))
    assert len(first["text"]) == 500_000


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".jsonl.gz"])
def test_json_lines(write, suffix):
    expected = [{"question": "a\u00e9", "label": True, "more": 1}, {"question": "b", "label": False}]
    content = "\n".join(map(json.dumps, expected)).encode()
    content = gzip.compress(content) if suffix.endswith(".gz") else content
    assert rows_of(write(f"a{suffix}", content)) == list(enumerate(expected, start=1))


BAD_FILES = {
    "suffix": ("a.doc", TSV, r"unknown suffix '\.doc'; give \.tsv, \.txt, \.csv, \.jsonl, \.json"),
    "short row": ("a.tsv", TSV + "short\n", r"a\.tsv, line 4: 1 fields, but the header has 2"),
    "long csv row": ("a.csv", 'text,label\n"a\nb",x\nc,d,e\n', r"a\.csv, line 4: 3 fields, but the header has 2"),
    "blank line": ("a.tsv", "text\tlabel\na\tx\n\nb\ty\n", r"line 3: 1 fields"),
    "open quote": ("a.csv", 'text,label\na,x\n"b,y\nc,z\n', r"a\.csv, line 3: unexpected end of data"),
    "text after quote": ("a.csv", 'text,label\n"a"b,x\n', r"a\.csv, line 2: ',' expected after '\"'"),
    "twin columns": ("a.tsv", "text\ttext\tlabel\n", r"line 1: a column name occurs twice"),
    "bytes": ("a.tsv", b"text\tlabel\na\xff\t0\n", r"a\.tsv, line 2: byte 0xff at offset 12 is not UTF-8"),
    "nul": ("a.tsv", b"text\tlabel\na\0\t0\n", r"a\.tsv, line 2: NUL byte at offset 12"),
    "utf-16": ("a.tsv", TSV.encode("utf-16"), r"a\.tsv is in UTF-16; save it as UTF-8 \(iconv -f UTF-16 -t UTF-8\)"),
    "empty": ("a.tsv", "\n", r"a\.tsv is empty"),
    "bad gzip": ("a.tsv.gz", TSV, r"a\.tsv\.gz: damaged or incomplete gzip file"),
    "cut gzip": ("a.tsv.gz", gzip.compress(TSV.encode())[:-9], r"damaged or incomplete gzip file"),
    "json values": ("a.json", "[1, 2]", r"line 1: not a JSON object; write one object per line"),
    "not json": ("a.jsonl", '{"text": "a", "label": 1}\nnope', r"a\.jsonl, line 2: not JSON \(Expecting value"),
    "nested json": ("a.jsonl", "[" * 100_000, r"a\.jsonl, line 1: not JSON \(too many nested lists or objects\)"),
    "long number": ("a.jsonl", '{"label": ' + "1" * 5000 + "}", r"a\.jsonl, line 1: not JSON \(Exceeds the limit"),
    "not parquet": ("b.parquet", "text", r"b\.parquet: not a Parquet file"),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_are_named(write, name, content, message):
    with pytest.raises(UserError, match=message) as caught:
        rows_of(write(name, content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.tsv", "missing.parquet"])
def test_missing_files_are_named(name):
    with pytest.raises(MissingFileError, match=rf"{name}: no such file"):
        rows_of(name)


@pytest.fixture
def write_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def write(name, columns, metadata=None):
        table = pyarrow.table(columns).replace_schema_metadata(metadata)
        parquet.write_table(table, tmp_path / name)
        return str(tmp_path / name)

    return write


def test_parquet_rows_are_numbered_from_zero(write_parquet):
    path = write_parquet("a.parquet", {"text": ["a", "b"], "label": [1, 0]})
    assert rows_of(path) == [(0, {"text": "a", "label": 1}), (1, {"text": "b", "label": 0})]


def test_parquet_files_of_hugging_face_name_their_classes(write_parquet):
    features = {"label": {"names": ["low", "high"], "_type": "ClassLabel"}, "text": {"_type": "Value"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    path = write_parquet("a.parquet", {"text": ["a"], "label": [-1]}, metadata)
    table = open_file(path, label_column="label")
    assert (table.class_names, table.hidden_label) == (("low", "high"), True)
    assert open_file(path, label_column="text").class_names == ()
    assert open_file(write_parquet("b.parquet", {"label": [0]}), label_column="label").class_names == ()


def test_damaged_parquet_pages_are_named(write_parquet, write):
    data = Path(write_parquet("a.parquet", {"text": ["a", "b", "c"]})).read_bytes()
    with pytest.raises(UserError, match=r"c\.parquet: (damaged after record 0|not a Parquet file)"):
        rows_of(write("c.parquet", data[:40] + b"\xff" * 40 + data[80:]))


def test_parquet_values_that_python_cannot_represent_are_named(write_parquet):
    import pyarrow

    far = pyarrow.array([0, 2**62], type=pyarrow.timestamp("us"))
    rows = rows_of(write_parquet("a.parquet", {"when": far, "text": ["a", "b"]}))
    assert rows[0][1] == {"when": datetime.datetime(1970, 1, 1), "text": "a"}
    assert text_cell(rows[1][1], "text", allow_empty=False) == "b"
    with pytest.raises(UserError, match=r"^column 'when' holds a value that cannot be read: OverflowError, "):
        text_cell(rows[1][1], "when", allow_empty=False)


def test_parquet_columns_of_any_type_are_read_or_refused_by_name(write_parquet):
    import pyarrow as pa

    columns = {
        "dictionary": pa.array(["x"]).dictionary_encode(),
        "large": pa.array(["x"], pa.large_string()),
        "binary": pa.array([b"x"]),
        "decimal": pa.array([decimal.Decimal("1.50")]),
        "duration": pa.array([2**62], pa.duration("ns")),
        "nanoseconds": pa.array([1], pa.timestamp("ns")),
        "zone": pa.array([0], pa.timestamp("s", tz="No/Where")),
        "struct": pa.array([{"a": 1}]),
        "list": pa.array([["x"]]),
        "map": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int32())),
        "null": pa.nulls(1),
        "latin": pa.Array.from_buffers(
            pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\4\0\0\0"), pa.py_buffer(b"caf\xe9")]
        ),
    }
    [(_, cells)] = rows_of(write_parquet("a.parquet", columns))
    for name in ("dictionary", "large", "binary"):
        assert text_cell(cells, name, allow_empty=False) == "x"
    assert parse_score(cells["decimal"]) == 1.5
    for name in columns.keys() - {"dictionary", "large", "binary"}:
        with pytest.raises(UserError, match=f"^column '{name}' "):
            text_cell(cells, name, allow_empty=False)


def test_twin_columns_of_parquet_are_named(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.Table.from_arrays([pyarrow.array([1]), pyarrow.array([2])], names=["label", "label"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: the column 'label' occurs twice; rename or remove one"):
        rows_of(str(tmp_path / "a.parquet"))


def test_a_folder_is_read_as_one_table(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "1.txt").write_text('{"text": "a", "label": 1}', encoding="utf-8")
    (tmp_path / "inner" / "2.jsonl").write_text('{"text": "b", "label": 2}\n{"text": "c"}\n', encoding="utf-8")
    (tmp_path / "README.md").write_text("about", encoding="utf-8")
    (tmp_path / ".hidden.txt").write_text("x", encoding="utf-8")
    table = open_file(str(tmp_path), label_column="label")
    rows = list(table.rows)
    assert [cells["text"] for _, cells in rows] == ["a", "b", "c"]
    assert table.notes == ("2 files read", "1 other files left out, such as README.md")
    assert str(table.error(rows[0][0], "x")).endswith("1.txt, line 1: x")
    assert str(table.error(rows[2][0], "x")).endswith("2.jsonl, line 2: x")


def test_a_folder_of_several_splits_is_refused(tmp_path):
    for name in ("train-00000.jsonl", "test-00000.jsonl"):
        (tmp_path / name).write_text('{"text": "a"}', encoding="utf-8")
    with pytest.raises(UserError, match=r"has files of several splits, .*; give one file, or a folder of one split"):
        open_file(str(tmp_path), label_column="label")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty has no file that ends in \.tsv"):
        open_file(str(tmp_path / "empty"), label_column="label")


def test_a_folder_of_save_to_disk_is_pointed_to_hf(tmp_path):
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(UserError, match=r"`save_to_disk` of datasets wrote; give it as hf:"):
        open_file(str(tmp_path), label_column="label")
