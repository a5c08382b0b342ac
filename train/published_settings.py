"""The published fine-tuning settings of every task and model, and the scores that their authors measured."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

V1 = ("deberta-base", "deberta-large", "deberta-xlarge")
V2 = ("deberta-v2-xlarge", "deberta-v2-xxlarge")
_MODELS = (*V1, *V2, "deberta-v3-large")


class Published(NamedTuple):
    """The published settings of a task with a model.

    Attributes:
      epochs: number of epochs.
      warmup: number of steps, or a share of all steps if it is below 1.
      learning_rate: learning rate at the end of the warmup.
      batch_size: examples per step.
      dropout: dropout rate of the classifier.
    """

    epochs: int
    warmup: float
    learning_rate: float
    batch_size: int
    dropout: float


@dataclasses.dataclass(frozen=True)
class PublishedTask:
    """A task and its published settings by model.

    Attributes:
      source: where the examples are from.
      max_length: largest number of tokens per row.
      settings: published settings by model; None where nothing was published.
      from_mnli: whether v1 and v2 start from the model that was fine-tuned on MNLI.
      sift: weight of SiFT's loss, 0 without it; deberta-v3-xsmall has 3 in place of 5.
    """

    source: str
    max_length: int
    settings: Mapping[str, Published | None]
    from_mnli: bool = False
    sift: float = 0.0


def _by_model(*settings: Published | None, **others: Published) -> dict[str, Published | None]:
    """Returns settings by model: those of `_MODELS` in order, then others by name."""
    named = {name.replace("_", "-"): published for name, published in others.items()}
    return dict(zip(_MODELS, settings, strict=True)) | named


TASKS: Mapping[str, PublishedTask] = {
    "mnli": PublishedTask(
        "tfds:glue/mnli",
        256,
        _by_model(
            Published(3, 1000, 3e-5, 64, 0.1),
            Published(3, 1000, 1e-5, 64, 0.2),
            Published(3, 1000, 5e-6, 64, 0.3),
            Published(3, 1000, 4e-6, 64, 0.25),
            Published(3, 1000, 3e-6, 64, 0.3),
            Published(2, 500, 7e-6, 64, 0.3),
            deberta_v3_xsmall=Published(3, 1000, 4.5e-5, 64, 0.1),
            deberta_v3_small=Published(3, 1500, 4.5e-5, 64, 0.2),
            deberta_v3_base=Published(3, 1000, 1.5e-5, 64, 0.1),
        ),
    ),
    "mnli-sift": PublishedTask(  # epochs and learning rates were published for SiFT; the other settings are MNLI's
        "tfds:glue/mnli",
        256,
        {
            "deberta-base": Published(6, 1000, 1.5e-5, 64, 0.1),
            "deberta-v2-xxlarge": Published(6, 1000, 3e-6, 64, 0.3),
            "deberta-v3-xsmall": Published(10, 1000, 5e-5, 64, 0.1),
            "deberta-v3-small": Published(6, 1500, 3.5e-5, 64, 0.2),
            "deberta-v3-base": Published(6, 1000, 1.5e-5, 64, 0.1),
        },
        sift=5.0,
    ),
    "cola": PublishedTask(
        "tfds:glue/cola",
        64,
        _by_model(
            Published(6, 100, 2e-5, 32, 0.15),
            Published(6, 100, 7e-6, 32, 0.15),
            Published(8, 100, 5e-6, 32, 0.2),
            Published(8, 100, 3e-6, 32, 0.2),
            Published(10, 100, 2.5e-6, 32, 0.2),
            Published(10, 50, 5.5e-6, 32, 0.1),
        ),
    ),
    "mrpc": PublishedTask(
        "tfds:glue/mrpc",
        128,
        _by_model(
            Published(6, 50, 2e-5, 32, 0.15),
            Published(6, 50, 1e-5, 32, 0.15),
            Published(8, 50, 7e-6, 32, 0.3),
            Published(6, 50, 3.5e-6, 32, 0.2),
            Published(6, 50, 2e-6, 32, 0.2),
            Published(6, 50, 6e-6, 32, 0.2),
        ),
        from_mnli=True,
    ),
    "qnli": PublishedTask(
        "tfds:glue/qnli",
        512,
        _by_model(
            Published(4, 500, 2e-5, 32, 0.15),
            Published(4, 500, 1e-5, 32, 0.15),
            Published(4, 500, 7e-6, 32, 0.2),
            Published(4, 500, 4e-6, 64, 0.2),
            Published(4, 500, 3e-6, 64, 0.2),
            Published(6, 200, 7e-6, 64, 0.2),
        ),
    ),
    "qqp": PublishedTask(
        "tfds:glue/qqp",
        320,
        _by_model(
            Published(8, 500, 2e-5, 64, 0.15),
            Published(8, 500, 1e-5, 64, 0.15),
            Published(8, 500, 7e-6, 64, 0.2),
            Published(10, 1000, 4e-6, 64, 0.2),
            Published(10, 1000, 3e-6, 64, 0.2),
            Published(6, 1000, 1e-5, 64, 0.2),
        ),
    ),
    "rte": PublishedTask(
        "tfds:glue/rte",
        320,
        _by_model(
            Published(6, 100, 2e-5, 32, 0.2),
            Published(6, 50, 1e-5, 32, 0.2),
            Published(6, 50, 5e-6, 48, 0.2),
            Published(6, 50, 4e-6, 48, 0.2),
            Published(6, 50, 3e-6, 48, 0.2),
            Published(6, 50, 1e-5, 32, 0.3),
        ),
        from_mnli=True,
    ),
    "sst2": PublishedTask(
        "tfds:glue/sst2",
        128,
        _by_model(
            Published(6, 500, 2e-5, 32, 0.15),
            Published(6, 500, 1e-5, 32, 0.15),
            Published(6, 500, 3e-6, 32, 0.2),
            Published(4, 500, 4e-6, 32, 0.2),
            Published(4, 500, 3e-6, 32, 0.2),
            Published(8, 500, 6e-6, 32, 0.1),
        ),
    ),
    "stsb": PublishedTask(
        "tfds:glue/stsb",
        128,
        _by_model(
            Published(6, 100, 2e-5, 32, 0.15),
            Published(4, 100, 7e-6, 32, 0.15),
            Published(4, 100, 7e-6, 32, 0.2),
            Published(4, 100, 4e-6, 32, 0.2),
            Published(4, 100, 3e-6, 32, 0.2),
            Published(4, 50, 7e-6, 32, 0.1),
        ),
        from_mnli=True,
    ),
    "ner": PublishedTask(
        "tfds:conll2003",
        512,
        _by_model(
            Published(15, 0.1, 2e-5, 16, 0),
            Published(15, 0.1, 1e-5, 16, 0),
            Published(15, 0.1, 7e-6, 16, 0),
            Published(15, 0.1, 4e-6, 16, 0),
            Published(15, 0.1, 2.5e-6, 16, 0),
            Published(10, 10, 9e-6, 16, 0),
        ),
    ),
    "record": PublishedTask(
        "tfds:super_glue/record",
        512,
        _by_model(
            Published(3, 1000, 2e-5, 64, 0.3),
            Published(3, 1000, 1e-5, 64, 0.3),
            Published(3, 1000, 7e-6, 64, 0.3),
            Published(3, 1000, 5e-6, 64, 0.15),
            Published(3, 1000, 3e-6, 64, 0.15),
            Published(3, 500, 7e-6, 64, 0.1),
        ),
    ),
    "copa": PublishedTask(
        "tfds:super_glue/copa",
        136,
        _by_model(
            Published(3, 50, 1e-5, 32, 0.1),
            Published(4, 30, 5e-6, 16, 0.1),
            Published(4, 30, 3e-6, 24, 0.1),
            Published(4, 30, 2e-6, 24, 0.1),
            Published(8, 30, 1e-6, 24, 0.1),
            None,
        ),
        from_mnli=True,
    ),
    "race": PublishedTask(
        "tfds:race",
        320,
        _by_model(
            Published(6, 100, 2e-5, 32, 0.2),
            Published(6, 100, 8e-6, 32, 0.2),
            Published(6, 100, 7e-6, 48, 0.2),
            Published(6, 100, 4e-6, 48, 0.2),
            Published(6, 100, 3e-6, 48, 0.2),
            None,
        ),
        from_mnli=True,
    ),
}

# Published scores in percent: MNLI matched / mismatched; MRPC and QQP accuracy (F1); STS-B Pearson (Spearman); ReCoRD
# F1 / exact match.
SCORES: Mapping[str, Mapping[str, str]] = {
    "deberta-base": {"mnli": "88.8 / 88.5"},
    "deberta-large": {
        "mnli": "91.3 / 91.1",
        "sst2": "96.5",
        "qnli": "95.3",
        "cola": "69.5",
        "rte": "91.0",
        "mrpc": "92.6 (94.6)",
        "qqp": "92.3",
        "stsb": "92.8 (92.5)",
    },
    "deberta-xlarge": {"mnli": "91.5 / 91.2"},
    "deberta-v2-xlarge": {"mnli": "91.7 / 91.6"},
    "deberta-v2-xxlarge": {
        "mnli": "91.7 / 91.9",
        "mnli-sift": "92.0 / 92.1",
        "sst2": "97.2",
        "qnli": "96.0",
        "cola": "72.0",
        "rte": "93.5",
        "mrpc": "93.1 (94.9)",
        "qqp": "92.7 (90.3)",
        "stsb": "93.2 (93.1)",
        "copa": "97",
        "record": "94.1 / 93.7",
    },
    "deberta-v3-xsmall": {"mnli": "88.1 / 88.3"},
    "deberta-v3-small": {"mnli": "88.3 / 87.7", "mnli-sift": "88.8 / 88.5"},
    "deberta-v3-base": {"mnli": "90.6 / 90.7", "mnli-sift": "91.0 (matched)"},
    "deberta-v3-large": {
        "mnli": "91.8 / 91.9",
        "sst2": "96.9",
        "qnli": "96.0",
        "cola": "75.3",
        "rte": "92.7",
        "mrpc": "92.2",
        "qqp": "93.0",
        "stsb": "93.0",
    },
}
