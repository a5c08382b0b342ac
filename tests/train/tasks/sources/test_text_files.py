"""Tests of files that are no text in UTF-8: one line says what they are."""

import gzip

import pytest

from deberta_jax.errors import UserError
from deberta_jax.train.tasks.sources.files import open_file
from deberta_jax.train.tasks.sources.text_files import open_text

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>404</title></head></html>"
FOREIGN = {
    "pointer": ("a.tsv", POINTER, r"a\.tsv is a pointer of Git LFS, not the data; fetch the data with `git lfs pull`"),
    "pointer.parquet": ("a.parquet", POINTER, r"a\.parquet is a pointer of Git LFS"),
    "page": ("a.json", PAGE, r"a\.json is a web page \(HTML or XML\), not the data"),
    "page.parquet": ("a.parquet", PAGE, r"a\.parquet is a web page"),
    "page.gz": ("a.tsv.gz", gzip.compress(PAGE), r"is a web page"),
    "xlsx": ("a.xlsx", b"PK\x03\x04rest", r"a\.xlsx is a ZIP archive, as Excel's \.xlsx files are"),
    "xls": ("a.xls", b"\xd0\xcf\x11\xe0rest", r"a\.xls is an old Excel workbook; save the sheet as \.csv"),
    "zip": ("a.csv", b"PK\x03\x04rest", r"a\.csv is a ZIP archive"),
    "parquet": ("a.csv", b"PAR1rest", r"a\.csv is a Parquet file; give it a name that ends in \.parquet"),
    "utf-16": ("a.csv", "a,b\n1,2\n".encode("utf-16"), r"a\.csv is in UTF-16; save it as UTF-8"),
    "utf-16.gz": ("a.csv.gz", gzip.compress("a,b\n".encode("utf-16")), r"a\.csv\.gz is in UTF-16"),
    "utf-32": ("a.csv", "a,b\n".encode("utf-32"), r"a\.csv is in UTF-32"),
    "no mark": ("a.csv", "a,b\n".encode("utf-16-le"), r"line 1: NUL byte at offset 1; the file seems to be in UTF-16"),
    "latin-1": ("a.csv", "a,b\né,1\n".encode("latin-1"), r"line 2: byte 0xe9 .* iconv -f WINDOWS-1252 -t UTF-8"),
}


@pytest.mark.parametrize(("name", "content", "message"), FOREIGN.values(), ids=FOREIGN)
def test_foreign_files_are_named(write, name, content, message):
    with pytest.raises(UserError, match=message) as caught:
        open_file(write(name, content), label_column="label")
    assert "\n" not in str(caught.value)


def test_gzip_is_recognized_without_its_suffix(write):
    text = open_text(write("a.tsv", gzip.compress(b"\xef\xbb\xbfa\tb\r\n")))
    assert list(text.lines()) == list(text.pieces()) == ["a\tb"]
    assert text.head.startswith("a\tb")
