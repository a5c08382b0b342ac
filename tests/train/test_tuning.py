"""Fine-tuning with LoRA: what is trained, saved, merged and resumed, and what is refused."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from deberta_jax import Tokenizer, load_adapter, load_pretrained, merge_adapter, save_pretrained
from deberta_jax.adapter import save_adapter
from deberta_jax.errors import MissingFileError, UserError
from deberta_jax.lora import LoraConfig, adapted_model, joined
from deberta_jax.sharding import parameter_path
from deberta_jax.train import finetune
from deberta_jax.train.configs import FinetuneConfig, MeshConfig, OptimizerConfig
from deberta_jax.train.hosts.exit_codes import StoppedError
from deberta_jax.train.hosts.join import Hosts
from deberta_jax.train.tasks.classification.task import Classification
from deberta_jax.train.tuning import LoraTuning, choose_tuning

from ..support.configs import changed, finetune_config

pytest.importorskip("qwix", reason="LoRA needs the package qwix")

LORA = LoraConfig(rank=4, alpha=8.0)
IDS = np.ones((2, 8), np.int32)


@pytest.fixture(scope="module")
def home(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.tsv and dev.tsv of a few sentences, and a model with another head than theirs."""
    folder = tmp_path_factory.mktemp("home")
    words = {"good": ("merry", "happy", "kind"), "bad": ("sad", "angry", "cruel")}
    rows = [f"a {word} man of {number}\t{label}" for label in words for word in words[label] for number in range(6)]
    order = np.random.default_rng(0).permutation(len(rows))
    (folder / "train.tsv").write_text("\n".join(["text\tlabel", *(rows[index] for index in order[:32])]) + "\n")
    (folder / "dev.tsv").write_text("\n".join(["text\tlabel", *(rows[index] for index in order[24:])]) + "\n")
    shutil.copytree(small_model, folder / "model")
    return folder


def settings(home: Path, output: Path, **changes: Any) -> FinetuneConfig:
    base = finetune_config(
        output=output,
        model=home / "model",
        train=str(home / "train.tsv"),
        validation=str(home / "dev.tsv"),
        max_length=16,
        batch_size=8,
        steps=4,
        evaluate_every=0,
        log_every=1,
        optimizer=OptimizerConfig(learning_rate=1e-2),
        lora=LORA,
    )
    return changed(base, **changes)


@pytest.fixture(scope="module")
def finished(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    finetune.main(settings(home, folder))
    return folder


def paths_of(tree: Any) -> set[str]:
    return {parameter_path(path) for path, _ in jax.tree.leaves_with_path(tree)}


def assert_equal(first: Any, second: Any) -> None:
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_only_adapters_and_the_head_are_trained(home: Path, finished: Path) -> None:
    before, after = load_pretrained(home / "model")[1], load_pretrained(finished / "model")[1]
    moved = {
        parameter_path(path)
        for (path, old), (_, new) in zip(
            jax.tree.leaves_with_path(before["deberta"]), jax.tree.leaves_with_path(after["deberta"]), strict=True
        )
        if np.any(old != new)
    }
    targets = {f"encoder/layer_{number}/attention/{target}/kernel" for number in range(2) for target in LORA.targets}
    assert moved == targets
    assert paths_of(load_adapter(finished / "adapter").params) == {
        *(f"deberta/{path}_lora_{kind}" for path in targets for kind in "ab"),
        *(f"{head}/{name}" for head in ("pooler/dense", "classifier") for name in ("kernel", "bias")),
    }
    log = (finished / "metrics.jsonl").read_text()
    assert len(log.splitlines()) >= 4


def test_frozen_parameters_have_no_optimizer_state_and_no_place_in_a_checkpoint(home: Path, tmp_path: Path) -> None:
    config = settings(home, tmp_path)
    base, weights = load_pretrained(home / "model")
    model = Classification().model(base, dtype=np.float32, remat=False)
    tuning = choose_tuning(config, model, base, weights, IDS)
    assert isinstance(tuning, LoraTuning)
    optimizer = finetune.build_layerwise_optimizer(config, total_steps=4, layers=2)
    state = jax.eval_shape(
        lambda weights: finetune.build_state(model, optimizer, IDS, weights, seed=0, adapted=tuning.adapted), weights
    )
    trained = state.params["model"]
    assert set(trained) == {"deberta", "pooler", "classifier"}
    assert all("kernel_lora_" in path for path in paths_of(trained["deberta"]))
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape]
    assert sum(leaf.size for leaf in moments) == 2 * sum(leaf.size for leaf in jax.tree.leaves(trained))
    assert tuning.frozen["deberta"]["encoder"]["layer_0"] is not None
    assert "; LoRA trains 2,146 parameters" in tuning.description(trained)


def test_the_merged_model_equals_the_adapter_on_its_base(home: Path, finished: Path) -> None:
    base, weights = load_pretrained(home / "model")
    adapter = load_adapter(finished / "adapter")
    config, params = merge_adapter(base, weights, adapter)
    saved_config, saved = load_pretrained(finished / "model")
    assert config == saved_config
    assert config.label_names == ("bad", "good")
    assert_equal(params, saved)
    plain = Classification().model(config, dtype=np.float32, remat=False)
    adapted = adapted_model(plain, adapter.lora, train=False)
    both = joined({"deberta": weights["deberta"]}, adapter.params)
    outputs = [
        jax.jit(lambda tree, model=model: model.apply({"params": tree}, IDS).logits)(tree)
        for model, tree in ((plain, saved), (adapted, both))
    ]
    np.testing.assert_allclose(*outputs, atol=1e-5)


def test_another_base_model_is_refused(home: Path, finished: Path) -> None:
    base, weights = load_pretrained(home / "model")
    adapter = load_adapter(finished / "adapter")
    weights["deberta"]["embeddings"]["layer_norm"]["bias"] += 1e-3
    with pytest.raises(UserError, match=rf"on the model {re.escape(str(home))}.*, whose parameters are others"):
        merge_adapter(base, weights, adapter)
    with pytest.raises(UserError, match="the parameters have classifier, but no 'deberta'"):
        merge_adapter(base, {"classifier": {}}, adapter)


def test_damaged_adapters_are_refused(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "adapter"
    save_adapter(copy, load_adapter(finished / "adapter"))
    assert_equal(load_adapter(copy).params, load_adapter(finished / "adapter").params)
    description = copy / "adapter.json"
    text = description.read_text()
    description.write_text(text.replace('"rank": 4', '"rank": 8'))
    with pytest.raises(UserError, match=r"adapter.json is not as it was saved"):
        load_adapter(copy)
    (copy / "model.sha256").unlink()
    description.write_text("{}")
    with pytest.raises(UserError, match=r"adapter.json is damaged: KeyError 'rank'; copy the folder again"):
        load_adapter(copy)
    with pytest.raises(MissingFileError, match=r"is not an adapter: it needs adapter.json and params/, and holds: "):
        load_adapter(finished / "model")
    with pytest.raises(MissingFileError, match="holds: no such folder"):
        load_adapter(tmp_path / "none")


def test_a_stopped_run_goes_on_bit_for_bit(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"select": "best", "evaluate_every": 2, "lora": dataclasses.replace(LORA, dropout=0.1)}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    expected = finetune.main(settings(home, whole, **changes))
    with monkeypatch.context() as patch:
        patch.setattr(Hosts, "stop_requested", lambda hosts: hosts.phases.step == 3)
        with pytest.raises(StoppedError):
            finetune.main(settings(home, stopped, **changes))
    assert finetune.main(settings(home, stopped, **changes)) == expected
    for name in ("adapter", "best"):
        assert_equal(*(load_adapter(folder / name).params for folder in (whole, stopped)))
    assert_equal(*(load_pretrained(folder / "model")[1] for folder in (whole, stopped)))
    with pytest.raises(UserError, match=r"checkpoint of another configuration .*: lora.alpha is 8.0 there, 16.0 here"):
        finetune.main(settings(home, stopped, **changes | {"lora": LoraConfig(rank=4, alpha=16.0, dropout=0.1)}))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"mesh": MeshConfig(zero=2, fsdp=2, tensor=2), "batch_size": 8},
        {"accumulation": 2, "batch_size": 16, "remat": True},
    ],
)
def test_a_mesh_and_accumulation_train_the_same_adapter(home: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Without dropout, which draws other masks for other chunks."""
    model, (config, params) = tmp_path / "still", load_pretrained(home / "model")
    save_pretrained(model, config.replace(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), params)
    Tokenizer.from_folder(home / "model").save(model)
    shared = {"model": model, "lora": LoraConfig(rank=4, targets=("query_proj", "feed_forward/output"))}
    size = {"batch_size": changes["batch_size"]}
    finetune.main(settings(home, tmp_path / "plain", **shared | size))
    finetune.main(settings(home, tmp_path / "other", **shared | changes))
    first, second = (load_adapter(tmp_path / name / "adapter").params for name in ("plain", "other"))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-4), first, second)


@pytest.mark.slow
def test_sift_layer_decay_and_frozen_layers_train_a_part_of_the_adapters(home: Path, tmp_path: Path) -> None:
    sift = dataclasses.replace(settings(home, tmp_path).sift, weight=1.0)
    finetune.main(settings(home, tmp_path, freeze_layers=1, layer_decay=0.8, sift=sift))
    adapter = load_adapter(tmp_path / "adapter")
    assert list(adapter.params["deberta"]["encoder"]) == ["layer_1"]
    assert np.any(adapter.params["deberta"]["encoder"]["layer_1"]["attention"]["query_proj"]["kernel_lora_b"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"random_weights": True}, "leave out --random-weights"),
        ({"add_tokens": ("[X]",)}, "--add-tokens adds rows to the word embeddings, which --lora.rank does not train"),
        ({"freeze_layers": 2}, "freeze_layers is 2, which leaves no layer for adapters"),
        ({"lora": LoraConfig(rank=4, targets=("pos_key_proj",))}, "the model has no projection pos_key_proj"),
        ({"lora": LoraConfig(rank=32)}, "give a smaller --lora.rank"),
        ({"model": Path("adapter")}, "adapter is an adapter of LoRA, not a model; give the folder model/ beside it"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    home: Path, finished: Path, tmp_path: Path, changes: Any, message: str
) -> None:
    if "model" in changes:
        changes = {"model": finished / changes["model"]}
    with pytest.raises(UserError, match=re.escape(message)):
        finetune.main(settings(home, tmp_path, **changes))
    assert not (tmp_path / "model").exists()


def test_the_adapter_names_its_base(home: Path, finished: Path) -> None:
    content = json.loads((finished / "adapter" / "adapter.json").read_text())
    assert content["base_model"] == str(home / "model")
    assert content["configuration"]["id2label"] == {"0": "bad", "1": "good"}
