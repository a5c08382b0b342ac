"""Model cards: what the hub reads, what people read, and nothing of the author's machine."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from deberta_jax.convert.mapping import to_params
from deberta_jax.convert.model_card import CardOptions, is_ours, model_card, revised_card
from deberta_jax.convert.run_record import Mean, RunRecord

from ..support.pytorch_files import V3, random_state

RECORD = RunRecord(
    settings={
        "model": "org/base@v1",
        "train": "tfds:glue/sst2",
        "test": "/home/me/secret/test|1.tsv",
        "steps": 0,
        "epochs": 3.0,
        "label-smoothing": 0.0,
        "max-length": 128,
        "output": "/home/me/runs",
        "seed": 0,
    },
    versions={"jax": "0.10.2"},
    results={"validation": {"accuracy": 0.51239}},
    mean=Mean("validation", "accuracy", 0.5, 0.01, (0, 1)),
)


def card_of(*heads: str, record: RunRecord = RECORD, **options: Any) -> str:
    config = V3.replace(num_labels=3, label_names=("good", "bad", "so | so")) if "classifier" in heads else V3
    return model_card(
        config, to_params(random_state(config, *heads), config), record, CardOptions("me/mine", **options)
    )


def metadata(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_hub_reads_the_metadata() -> None:
    fields = metadata(card_of("pooler", "classifier", license="mit", languages=("en", "de")))
    index = fields.pop("model-index")
    assert fields == {
        "base_model": "org/base",
        "datasets": ["glue/sst2"],
        "language": ["en", "de"],
        "library_name": "transformers",
        "license": "mit",
        "metrics": ["accuracy"],
        "pipeline_tag": "text-classification",
        "tags": ["deberta", "deberta-jax"],
    }
    assert index[0]["name"] == "mine"
    (result,) = index[0]["results"]
    assert result["dataset"] == {"name": "glue/sst2", "type": "glue/sst2", "split": "validation"}
    assert result["metrics"] == [{"type": "accuracy", "value": 0.51239}]


def test_people_read_scores_settings_and_seeds_and_no_paths() -> None:
    card = card_of("pooler", "classifier")
    assert "| validation | accuracy | 0.5124 |" in card
    assert "their mean is 0.5000 ± 0.0100 (95 % confidence interval), with the seeds 0, 1" in card
    assert "| test | test\\|1.tsv |" in card
    assert "| steps | 0 |" in card
    assert "Trained with jax 0.10.2." in card
    assert "The author has not stated a license." in card
    assert metadata(card)["license"] == "unknown"
    for absent in ("/home", "secret", "label-smoothing", "epochs", "None"):
        assert absent not in card


@pytest.mark.parametrize("train", ["hf:/home/me/secret/set", "hf:~/secret/set", "hf:../secret/set@train"])
def test_a_local_folder_is_no_published_data_set(train: str) -> None:
    record = RunRecord({"train": train}, results={"test": {"accuracy": 0.5}})
    card = card_of("pooler", "classifier", record=record)
    fields = metadata(card)
    assert "datasets" not in fields
    assert fields["model-index"][0]["results"][0]["dataset"]["type"] == "local"
    assert not any(absent in card for absent in ("/home", "secret", "~"))


@pytest.mark.parametrize(
    ("train", "name"),
    [
        ("hf:org/set/config:v1@test", "org/set/config"),
        ("tfds:glue/sst2:2.0.0", "glue/sst2"),
        ("squad:b.json", "squad"),
    ],
)
def test_published_data_sets_are_named(train: str, name: str) -> None:
    assert metadata(card_of("pooler", "classifier", record=RunRecord({"train": train})))["datasets"] == [name]


@pytest.mark.parametrize(
    ("heads", "pipeline"),
    [
        (["classifier"], "token-classification"),
        (["span_classifier"], "question-answering"),
        (["mlm_head"], "fill-mask"),
        (["mlm_head", "rtd_head"], "feature-extraction"),
        ([], "feature-extraction"),
    ],
)
def test_the_head_tells_the_task(heads: list[str], pipeline: str) -> None:
    card = card_of(*heads, record=RunRecord(), library="deberta-jax")
    assert metadata(card)["pipeline_tag"] == pipeline
    assert "## Scores" not in card
    assert "load_pretrained(folder)" in card


def test_a_card_gets_the_name_and_license_of_a_repository() -> None:
    card = card_of("pooler", "classifier").replace("me/mine", "mine")
    revised = revised_card(card, CardOptions("you/other", "apache-2.0", ("en",)))
    expected = metadata(card) | {"license": "apache-2.0", "language": ["en"]}
    expected["model-index"][0]["name"] = "other"
    assert metadata(revised) == expected
    body, revised_body = (text.split("---\n", 2)[2] for text in (card, revised))
    body = body.replace('("mine")', '("you/other")').replace("# mine\n", "# other\n")
    assert revised_body == body.replace("\nThe author has not stated a license.", "")


def test_a_card_of_the_user_is_not_ours(tmp_path: Path) -> None:
    assert is_ours(tmp_path)
    (tmp_path / "README.md").write_text(card_of())
    assert is_ours(tmp_path)
    (tmp_path / "README.md").write_text("# Mine\n")
    assert not is_ours(tmp_path)
    (tmp_path / "README.md").write_bytes(b"\xff")
    assert not is_ours(tmp_path)
