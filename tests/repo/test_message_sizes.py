"""Messages about very long names and very many of them: each line is short, printable and says what is wrong."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from deberta_jax import DebertaConfig, Tokenizer, UserError, load_pretrained
from deberta_jax.convert.containers import remove_prefixes
from deberta_jax.convert.from_pytorch import find_weights
from deberta_jax.convert.hub import foreign_weights
from deberta_jax.convert.mapping import to_params
from deberta_jax.errors import one_line
from deberta_jax.terminal import printable
from deberta_jax.train.checkpoints.manifest import list_differences
from deberta_jax.train.data.text import read_documents
from deberta_jax.train.data.text_files import describe_ignored
from deberta_jax.train.finetune_setup import heads_message
from deberta_jax.train.hosts.shared_folder import check_shared_folder
from deberta_jax.train.tasks.choices.questions import read_questions
from deberta_jax.train.tasks.loading import _check_labels
from deberta_jax.train.tasks.sources.cells import cell_value, parse_class_name, parse_score, text_cell
from deberta_jax.train.tasks.sources.classes import NO_HEAD, ClassChoice, Classes, Head, choose_classes
from deberta_jax.train.tasks.sources.delimited import Reading, open_delimited
from deberta_jax.train.tasks.sources.files import open_file
from deberta_jax.train.tasks.sources.table import Table
from deberta_jax.train.tasks.sources.text_files import TextFile, open_text

from ..support.pytorch_files import V3, random_state
from ..support.small_models import TINY

LONGEST = 2000
DOCUMENT = "\x1b[2J a whole document \u202e" * 400_000  # 10 MB
MANY = tuple(f"\x1b class {number}" for number in range(10_000))
LONG_NAME = "\x1b\u202eé" * 60  # a file name of 240 bytes and more


def written(text: str, folder: Path) -> TextFile:
    path = folder / "bin" / "a.tsv"
    path.write_text(text)
    return open_text(str(path))


def choose(labels: Any, *, given: Any = (), head: Head = NO_HEAD) -> Classes:
    splits = {"train": set(labels), "validation": {"unknown", "other"}, "test": set(MANY)}
    return choose_classes(splits, ClassChoice(given, head, (), sorted), table=DOCUMENT)


def config_of(**fields: Any) -> DebertaConfig:
    return DebertaConfig.from_json({"model_type": "deberta-v2", "vocab_size": 50, **fields})


ERRORS: dict[str, Callable[[Path], Any]] = {
    "unknown label": lambda folder: Classes(MANY, (), {}, "a class").index("new"),
    "document as a label": lambda folder: Classes((DOCUMENT, "b"), (), {}, "a class").index(DOCUMENT, owner=DOCUMENT),
    "single class": lambda folder: choose([DOCUMENT[:500_000]]),
    "blank label": lambda folder: _check_labels((*MANY, " "), "tokens"),
    "labels twice": lambda folder: _check_labels((*MANY, *MANY, DOCUMENT, DOCUMENT), "classification"),
    "missing column": lambda folder: cell_value(dict.fromkeys((*MANY, DOCUMENT), 1), "text"),
    "column name": lambda folder: cell_value({}, DOCUMENT),
    "value of a column": lambda folder: text_cell({"a": [DOCUMENT] * 10}, "a", allow_empty=False),
    "label of a wrong type": lambda folder: parse_class_name([DOCUMENT], ()),
    "score": lambda folder: parse_score(DOCUMENT),
    "header": lambda folder: open_delimited(written("\t".join((*MANY, *MANY)), folder), "\t", Reading()),
    "header of one column": lambda folder: open_delimited(written(",".join(MANY) + "\nb", folder), "\t", Reading()),
    "columns of choices": lambda folder: read_questions(
        Table("a", "line", iter([(1, dict.fromkeys((*MANY, "t", "x"), ""))])),
        {"text": "t", "choices": MANY, "label": "x"},
        label_optional=False,
    ),
    "file name": lambda folder: open_file(str(folder / LONG_NAME / (LONG_NAME + ".tsv")), label_column="label"),
    "suffix": lambda folder: open_file("a." + DOCUMENT[:3000], label_column="label"),
    "no tokenizer": Tokenizer.from_folder,
    "no model": load_pretrained,
    "no weights": find_weights,
    "no text": lambda folder: list(read_documents(sorted(folder.glob("*.txt")), boundary="line")),
    "no text files": lambda folder: list(read_documents([folder / "bin"], boundary="line")),
    "released model": lambda folder: DebertaConfig.named(DOCUMENT),
    "labels of a model": lambda folder: config_of(id2label=dict.fromkeys(MANY, "x")),
    "labels of a model as a list": lambda folder: config_of(id2label=list(MANY)),
    "setting of a model": lambda folder: config_of(hidden_act=DOCUMENT),
    "terms of attention": lambda folder: config_of(pos_att_type="|".join(MANY)),
    "type of a model": lambda folder: config_of(model_type=DOCUMENT),
    "misspelt field": lambda folder: config_of(**{"hidden_sizes": DOCUMENT}),
    "names of parameters": lambda folder: to_params(dict.fromkeys(MANY, np.ones(1)) | random_state(V3), V3),
    "prefixes": lambda folder: remove_prefixes(
        {f"{name}.{key}": np.ones(1) for name in MANY[:500] for key in random_state(V3)}, encoder_only=False
    ),
    "parts": lambda folder: to_params(random_state(V3), V3, include=MANY),
}


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with many files of long names, none of which is of any use."""
    folder = tmp_path_factory.mktemp("crowded")
    (folder / "bin").mkdir()
    for number in range(500):
        (folder / f"{LONG_NAME[:100]}{number}.txt").write_text("\n")
        (folder / f"{LONG_NAME[:100]}{number}.pt").touch()
        (folder / "bin" / f"{LONG_NAME[:100]}{number}.dat").touch()
    return folder


def assert_short(line: str) -> None:
    assert 0 < len(line) <= LONGEST
    assert printable(line) == line


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_short(name: str, crowded: Path) -> None:
    with pytest.raises((UserError, OSError)) as raised:
        ERRORS[name](crowded)
    assert_short(one_line(raised.value))
    if isinstance(raised.value, UserError):
        assert len(str(raised.value)) <= LONGEST


def test_hosts_without_the_folder_are_few_in_the_message(tmp_path: Path) -> None:
    client = mock.Mock()
    client.blocking_key_value_get.return_value = "False"
    names = [f"process {number} on {DOCUMENT[:300]}" for number in range(1000)]
    with pytest.raises(UserError, match="is not the same folder on all hosts") as raised:
        check_shared_folder(client, tmp_path, index=0, names=names, seen_within=0)
    assert_short(str(raised.value))


def test_notes_and_logs_are_short(crowded: Path, caplog: pytest.LogCaptureFixture) -> None:
    some = MANY[:2000]
    notes = choose(some, head=Head(len(some), some)).notes
    notes |= {"other": choose((*some, *map(str.upper, some))).notes["train"]}
    lines = [line for split in notes.values() for line in split]
    assert len(lines) < 20
    with caplog.at_level(logging.WARNING, logger="deberta_jax"):
        config_of(**dict.fromkeys(MANY, 1), hidden_size=24, num_attention_heads=2)
    model, task = mock.Mock(label_names=MANY), mock.Mock(label_names=MANY[::-1])
    weights = {"classifier": {"bias": np.ones(len(MANY)), "kernel": np.ones((2, len(MANY)))}}
    lines += [heads_message(weights, weights, model, task)]
    lines += list_differences({"labels": list(MANY), "path": DOCUMENT}, {"labels": [], "path": ""})
    lines += [describe_ignored([crowded]), foreign_weights([f"{name}.h5" for name in MANY]), *caplog.messages]
    assert len(lines) > 8
    for line in lines:
        assert_short(line)


def test_configurations_are_valid_otherwise() -> None:
    assert config_of(id2label=dict(enumerate(("a", "b")))).label_names == ("a", "b")
    assert TINY.num_labels == 2
