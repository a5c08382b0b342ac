"""Training starts from hub names and from folders of PyTorch files, as from folders of this library."""

from pathlib import Path

import numpy as np
import pytest

from deberta_jax import load_pretrained, save_pretrained
from deberta_jax.convert import save_pytorch
from deberta_jax.errors import MissingFileError, UserError
from deberta_jax.sharding import make_mesh
from deberta_jax.train import finetune, pretrain
from deberta_jax.train.model_folders import model_folder, tokenizer_folder
from deberta_jax.train.pretrain_setup import load_initial_models

from ..support.configs import finetune_config, pretrain_config
from ..support.fake_hub import fake_hub
from ..support.pytorch_files import MLM, RTD, V3, bin_bytes, random_state, write_json
from ..support.small_models import SMALL


def test_finetune_from_a_hub_name(tmp_path: Path, small_model: Path) -> None:
    config, params = load_pretrained(small_model)
    data = tmp_path / "train.tsv"
    data.write_text("text\tlabel\nit was\ta\nthe sea\tb\n")
    with fake_hub(tmp_path / "hub") as hub:
        hub.folders["org/model"] = tmp_path / "repository"
        save_pytorch(tmp_path / "repository", config, params)
        (tmp_path / "repository" / "spm.model").write_bytes((small_model / "spm.model").read_bytes())
        run = finetune_config(
            output=tmp_path / "run", model=Path("org/model"), train=str(data), steps=1, batch_size=8, max_length=16
        )
        finetune.main(run)
    assert load_pretrained(tmp_path / "run" / "model")[0].num_labels == 2


def test_a_pair_gives_its_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEBERTA_JAX_CACHE", str(tmp_path / "cache"))
    folder, generator = tmp_path / "pair", V3.replace(num_hidden_layers=1)
    write_json(folder, V3)
    write_json(folder, generator, "generator_config.json")
    (folder / "pytorch_model.bin").write_bytes(bin_bytes(random_state(V3, MLM, RTD)))
    (folder / "pytorch_model.generator.bin").write_bytes(bin_bytes(random_state(generator, MLM)))
    for objective, layers in (("rtd", 1), ("mlm", 2)):
        config = pretrain_config(init_generator=folder, objective=objective)
        assert load_initial_models(config, make_mesh())["generator"].config.num_hidden_layers == layers
    config = pretrain_config(init_discriminator=folder)
    assert load_initial_models(config, make_mesh())["discriminator"].config.num_hidden_layers == 2


def test_a_missing_folder_may_be_a_hub_name(tmp_path: Path, small_model: Path) -> None:
    assert model_folder(small_model) == tokenizer_folder(small_model) == small_model
    with fake_hub(tmp_path) as hub:
        for find in (model_folder, tokenizer_folder):
            with pytest.raises(MissingFileError, match=r"^no folder runs/bas, and the hub has no repository runs/bas"):
                find(Path("runs/bas"))
        hub.requests.clear()
        with pytest.raises(MissingFileError, match=r"^no folder .*/gone; pass one, or a hub name such as"):
            model_folder(tmp_path / "gone")
        assert not hub.requests


@pytest.mark.parametrize("source", ["run/model", "run/best/", "link", "run/seeds/../model"])
def test_a_run_does_not_write_over_the_model_it_starts_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("run/model/params", "run/best/params", "run/seeds"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to("run/model")
    run = finetune_config(output=tmp_path / "run", model=Path(source), train="none.tsv")
    with pytest.raises(UserError, match=r"write its model over the one it starts from, .*; choose another --output"):
        finetune.main(run)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["best", "model", "seeds"]


def test_a_run_of_a_sweep_does_not_write_over_the_model_it_starts_from(tmp_path: Path) -> None:
    (tmp_path / "seed-2" / "model").mkdir(parents=True)
    run = finetune_config(output=tmp_path, model=tmp_path / "seed-2" / "model", train="none.tsv", seeds=(1, 2))
    with pytest.raises(UserError, match="choose another --output, or copy the model first"):
        finetune.main(run)


@pytest.mark.parametrize("name", ["init_generator", "init_discriminator"])
def test_pretraining_does_not_write_over_the_models_it_starts_from(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name.removeprefix("init_")
    folder.mkdir()
    with pytest.raises(UserError, match=rf"over the one it starts from, {folder}; choose another --output"):
        pretrain.main(pretrain_config(output=tmp_path, **{name: folder}))
    assert list(tmp_path.iterdir()) == [folder]


def test_training_does_not_start_from_nan(tmp_path: Path) -> None:
    params = {"deberta": {"embeddings": {"word_embeddings": {"embedding": np.full((60, 32), np.inf, np.float32)}}}}
    save_pretrained(tmp_path / "model", SMALL, params)
    config = pretrain_config(output=tmp_path / "run", init_discriminator=tmp_path / "model")
    with pytest.raises(UserError, match=r"NaN or infinite: deberta/embeddings/word_embeddings/embedding; the training"):
        load_initial_models(config, make_mesh(fsdp=2))
