"""Uploads to a hub on this machine, what is shown before, and one line for everything that can be wrong."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from deberta_jax import load_pretrained, save_pretrained
from deberta_jax.__main__ import main
from deberta_jax.convert import load_pytorch

from ...support.fake_hub import TOKEN, FakeHub, fake_hub
from ...support.predictor import head_params, random_predictor
from ...support.pytorch_files import assert_same


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with fake_hub(tmp_path / "cache") as server:
        yield server


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder, model = tmp_path_factory.mktemp("run"), random_predictor()
    save_pretrained(folder / "model", model.config, head_params(model, "mlm_head"), tokenizer=model.tokenizer.files())
    (folder / "results.json").write_text(json.dumps({"validation": {"accuracy": 0.5}}))
    return folder


def share(*arguments: str | Path) -> int:
    return main(["share", *map(str, arguments)])


def test_nothing_is_uploaded_unless_asked(run: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(run.rglob("*"))
    assert share(run, "me/model") == 0
    out = capsys.readouterr().out
    assert "model.safetensors\n" in out
    assert "\nlicense: unknown\n" in out
    assert "nothing was uploaded; add --upload to create me/model" in out
    assert not hub.requests
    assert sorted(run.rglob("*")) == before


def test_what_is_uploaded_is_the_model(run: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert share(run, "me/model", "--upload", "--license", "mit", "--language", "en", "--private") == 0
    assert capsys.readouterr().out.endswith("/me/model\n")
    assert hub.visibility == {"me/model": "private"}
    card = (hub.folders["me/model"] / "README.md").read_text()
    assert "\nlicense: mit\n" in card
    assert "has not stated a license" not in card
    assert 'load_pytorch("me/model")' in card
    config, params = load_pytorch("me/model")  # downloads it from there
    assert config == random_predictor().config
    assert_same(params, head_params(random_predictor(), "mlm_head"))


def test_our_format_is_uploaded_as_it_is(run: Path, hub: FakeHub) -> None:
    assert share(run / "model", "me/ours", "--upload", "--format", "deberta-jax") == 0
    assert_same(load_pretrained(hub.folders["me/ours"])[1], load_pretrained(run / "model")[1])
    assert "library_name: deberta-jax" in (hub.folders["me/ours"] / "README.md").read_text()
    assert not (run / "model" / "README.md").exists()


def test_an_exported_folder_keeps_its_card(
    run: Path, tmp_path: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "exported"
    assert main(["export", str(run), str(folder)]) == 0
    assert "| validation | accuracy | 0.5000 |" in (folder / "README.md").read_text()
    assert share(folder, "me/first", "--upload", "--license", "mit") == 0
    card = (hub.folders["me/first"] / "README.md").read_text()
    assert "# first\n" in card
    assert 'from_pretrained("me/first")' in card
    assert "| validation | accuracy | 0.5000 |" in card
    assert "license: mit" in card
    (folder / "README.md").write_text("# Mine\n")
    assert main(["export", str(run), str(folder)]) == 0
    assert "README.md is yours and stays as it is" in capsys.readouterr().out
    assert share(folder, "me/second", "--upload") == 0
    assert (hub.folders["me/second"] / "README.md").read_text() == "# Mine\n"
    assert share(folder, "me/second", "--upload", "--license", "mit") == 1
    assert "README.md is yours and is uploaded as it is; leave out --license" in capsys.readouterr().err


def test_an_existing_repository_needs_update(run: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert share(run, "me/model", "--upload") == 0
    (hub.folders["me/model"] / "notes.txt").write_text("kept")
    assert share(run, "me/model", "--upload") == 1
    assert "/me/model exists; add --update to commit to it" in capsys.readouterr().err
    assert share(run, "me/model", "--upload", "--update", "--license", "mit") == 0
    assert "license: mit" in (hub.folders["me/model"] / "README.md").read_text()
    assert (hub.folders["me/model"] / "notes.txt").read_text() == "kept"


def test_a_refused_upload_is_one_line(
    run: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.read_only.add("them")
    assert share(run, "them/model", "--upload") == 1
    assert one_line(capsys) == (
        "deberta-jax share: them/model was not uploaded: your token may not write to them/model; use one with write "
        "access, or another owner"
    )
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert share(run, "me/model", "--upload") == 1
    assert "you are not logged in, or the token is not valid; run `hf auth login`, or set HF_TOKEN" in one_line(capsys)
    hub.down = True
    assert share(run, "me/model", "--upload") == 1
    assert "me/model was not uploaded: the hub answered 503" in one_line(capsys)
    assert not hub.folders


def test_a_hub_that_cannot_be_reached_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_hub(tmp_path / "cache"):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        assert share(run, "me/model", "--upload") == 1
    assert "http://127.0.0.1:9 cannot be reached: " in one_line(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "me/model"], "no folder nowhere; give the folder of a run or of a model"),
        (["{run}", "model"], "the repository is 'model'; give OWNER/NAME, such as me/my-deberta"),
        (["{run}", "me/model", "--license", "MIT License"], "license is 'MIT License'; give an identifier of the hub"),
        (["{run}/..", "me/model"], "has no finished model; give the folder of a run, of a model"),
    ],
    ids=["folder", "name", "license", "no model"],
)
def test_mistakes_are_one_line(
    run: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert share(*(argument.replace("{run}", str(run)) for argument in arguments)) == 1
    assert message in one_line(capsys)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error.rstrip("\n")
