"""Sets of `datasets`: their names, local folders that the package itself wrote, and one line for each mistake."""

from pathlib import Path

import pytest

from deberta_jax.errors import MissingFileError, MissingPackageError, UserError
from deberta_jax.train.tasks.loading import load_task
from deberta_jax.train.tasks.sources.hub_sets import HubSet, parse_hub_set
from deberta_jax.train.tasks.sources.source import Source, named_splits, open_table
from deberta_jax.train.tasks.sources.table import Table
from deberta_jax.train.tasks.spans.questions import load_questions

from ....support.configs import finetune_config
from ....support.letters import Letters

datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")


def read(given: str, *, label_column: str = "label", data_dir: Path | None = None) -> Table:
    source = named_splits(given, None, None)[0][1]
    return open_table(source, label_column=label_column, data_dir=data_dir)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `save_to_disk` wrote, of sentences, words and questions in three splits."""
    folder = tmp_path_factory.mktemp("saved")
    tags = datasets.ClassLabel(names=["O", "B-PER"])
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["negative", "positive"]),
            "words": datasets.Sequence(datasets.Value("string")),
            "labels": datasets.Sequence(tags),
            "question": datasets.Value("string"),
            "context": datasets.Value("string"),
            "answers": {
                "text": datasets.Sequence(datasets.Value("string")),
                "answer_start": datasets.Sequence(datasets.Value("int32")),
            },
        }
    )
    rows = {
        "text": ["a b", "b c", "c a"],
        "label": [1, 0, 1],
        "words": [["a", "b"], ["b", "c"], ["c", "a"]],
        "labels": [[0, 1], [0, 0], [1, 0]],
        "question": ["a", "b", "c"],
        "context": ["a b c"] * 3,
        "answers": [{"text": ["b"], "answer_start": [2]}] * 3,
    }
    datasets.disable_progress_bars()
    splits = {name: datasets.Dataset.from_dict(rows, features=features) for name in ("train", "validation", "test")}
    datasets.DatasetDict(splits).save_to_disk(str(folder / "all"))
    splits["train"].save_to_disk(str(folder / "one"))
    return folder


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files that `load_dataset` reads."""
    folder = tmp_path_factory.mktemp("tables")
    for split in ("train", "test"):
        (folder / f"{split}.csv").write_text("text,label\na b,1\nb c,0\n")
    return folder


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        ("imdb", HubSet("imdb", None, None, False)),
        ("glue/sst2", HubSet("glue", "sst2", None, False)),
        ("nyu-mll/glue/sst2", HubSet("nyu-mll/glue", "sst2", None, False)),
        ("stanfordnlp/imdb:refs/pr/1", HubSet("stanfordnlp/imdb", None, "refs/pr/1", False)),
        ("user/set/config:main", HubSet("user/set", "config", "main", False)),
        ("./folder", HubSet("./folder", None, None, True)),
    ],
)
def test_names_are_those_of_the_hub(given: str, parsed: HubSet) -> None:
    assert parse_hub_set(given) == parsed


def test_published_sets_are_known_by_their_names_on_the_hub() -> None:
    for given in ("hf:glue/mnli", "hf:nyu-mll/glue/mnli"):
        splits = [(name, source.hub_name, source.split) for name, source, _ in named_splits(given, None, given)]
        name = given.removeprefix("hf:")
        assert splits == [
            ("train", name, "train"),
            ("validation", name, "validation_matched"),
            ("validation_mismatched", name, "validation_mismatched"),
            ("test", name, "test_matched"),
        ]
    squad = Source.parse("hf:squad_v2").published
    assert squad is not None
    assert squad.kind == "span"
    assert Source.parse("hf:imdb").published is None
    splits = named_splits("hf:imdb", "hf:imdb@test", "hf:imdb")
    assert [(name, source.split, role) for name, source, role in splits] == [
        ("train", "train", "train"),
        ("validation", "test", "validation"),
        ("test", "test", "test"),
    ]


def test_a_saved_set_is_read_with_the_names_of_its_classes(saved: Path) -> None:
    table = read(f"hf:{saved / 'all'}@validation")
    assert table.class_names == ("negative", "positive")
    assert [(number, cells["text"], cells["label"]) for number, cells in table.rows] == [
        (0, "a b", 1),
        (1, "b c", 0),
        (2, "c a", 1),
    ]
    assert read(f"hf:{saved / 'all'}", label_column="labels").class_names == ("O", "B-PER")
    assert len(list(read(f"hf:{saved / 'one'}").rows)) == 3


def test_a_folder_of_files_is_read(tables: Path, tmp_path: Path) -> None:
    for given, count in ((f"hf:{tables}@test", 2), (f"hf:{tables}@train[:50%]", 1)):
        assert len(list(read(given, data_dir=tmp_path).rows)) == count
    assert any(tmp_path.rglob("*.arrow"))  # the cache of `datasets`


@pytest.mark.parametrize("kind", ["classification", "tokens"])
def test_every_kind_of_task_is_loaded(saved: Path, kind: str) -> None:
    folder = f"hf:{saved / 'all'}"
    config = finetune_config(train=folder, validation=folder, test=folder, kind=kind, max_length=16)
    task = load_task(config, Letters())
    assert task.splits.keys() == {"train", "validation", "test"}
    assert all(len(split.lengths) == 3 for split in task.splits.values())


def test_answers_of_squad_are_read(saved: Path) -> None:
    folder = f"hf:{saved / 'all'}"
    for question in load_questions(folder, validation=folder).splits["validation"]:
        assert [(answer.text, answer.start) for answer in question.answers] == [("b", 2)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("hf:", "is not a source; write hf:NAME"),
        ("hf:a//b", "is not a source; write hf:NAME"),
        ("hf:imdb@", "is not a source; write hf:NAME"),
        ("hf:imdb:", "is not a source; write hf:NAME"),
    ],
)
def test_bad_names_are_refused(given: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(given)


def test_missing_splits_and_folders_are_named(saved: Path, tables: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no split 'dev'; there are train, validation, test: write hf:.*@SPLIT"):
        read(f"hf:{saved / 'all'}@dev")
    with pytest.raises(UserError, match=r"no split 'test'; the folder has a single one"):
        read(f"hf:{saved / 'one'}@test")
    with pytest.raises(UserError, match=r"no split 'dev'; there are test, train|no split 'dev'; there are train, test"):
        read(f"hf:{tables}@dev", data_dir=tmp_path)
    with pytest.raises(MissingFileError, match=r"hf:\./none: no such folder"):
        read("hf:./none")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist"), "there is no such set or revision"),
        (datasets.exceptions.DatasetNotFoundError("'a/b' is a gated dataset"), "is gated: accept its terms on the hub"),
        (ConnectionError("Couldn't reach 'a/b' on the Hub"), "the hub cannot be reached"),
        (ValueError("Config name is missing.\nPlease pick one: ['x', 'y']"), r"'x', 'y'\]; write hf:NAME/CONFIG"),
        (RuntimeError("Dataset scripts are no longer supported"), "needs a script to be read"),
        (OSError(28, "No space left on device"), "cannot be loaded .OSError: .*No space left"),
    ],
)
def test_what_the_hub_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(UserError, match=message) as raised:
        read("hf:a/b")
    assert "\n" not in str(raised.value)


def test_without_the_package_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'deberta-jax\[datasets\]'"):
        read("hf:a/b")
