"""Tests of the table of published sets against tensorflow_datasets."""

import pytest

from deberta_jax.train.tasks.sources.published import PUBLISHED
from deberta_jax.train.tasks.sources.published_formats import unchanged
from deberta_jax.train.tasks.sources.source import Source
from deberta_jax.train.tasks.sources.tfds_builder import replace_tensorflow

from ....support.published_archives import LANGUAGES, builder_class


def test_the_table_has_the_required_sets():
    names = {"super_glue/boolq", "super_glue/cb", "super_glue/copa", "super_glue/multirc", "super_glue/wic"}
    names |= {"super_glue/record", "super_glue/rte"}
    names |= {"race", "race/high", "race/middle", "anli/r1", "anli/r2", "anli/r3", "conll2003"}
    names |= {"squad/v1.1", "squad/v2.0"}
    assert names <= set(PUBLISHED)
    assert len(LANGUAGES) == 15


# All languages of XNLI have the same builder.
@pytest.mark.parametrize(
    "name", [name for name in PUBLISHED if not name.startswith(("glue/", "squad/", "xnli/"))] + ["xnli/de"]
)
def test_the_table_agrees_with_tensorflow_datasets(name, tmp_path):
    import tensorflow_datasets as tfds
    import tensorflow_datasets.text

    replace_tensorflow()
    known = PUBLISHED[name]
    for builder_name in Source.parse(f"tfds:{name}").builders:
        builder = tfds.builder(builder_name, data_dir=tmp_path)
        features = dict(builder.info.features.items())
        if known.records is unchanged:
            columns = {
                column for value in known.columns.values() for column in ([value] if isinstance(value, str) else value)
            }
            assert columns <= set(features), name
            label = features[str(known.columns["label"])]
        elif name == "super_glue/record":  # has no labels: an entity is correct if it is among the answers
            assert {"passage", "query", "entities", "answers", "idx"} <= set(features)
            label = None
        else:
            label = features["label"]
        label = getattr(label, "feature", label)
        if known.label_names and label is not None:
            assert sorted(known.renamed.get(name, name) for name in label.names) == sorted(known.label_names)
        if builder.url_infos:
            assert set(known.files) <= {info.filename for info in builder.url_infos.values()}
        else:
            assert known.unchecked_url


def test_the_table_agrees_with_tensorflow_datasets_about_glue():
    glue = builder_class("glue")
    configs = {f"glue/{config.name}": config for config in glue.BUILDER_CONFIGS}
    tasks = {name: task for name, task in PUBLISHED.items() if name.startswith("glue/")}
    assert set(tasks) == set(configs)
    for name, task in tasks.items():
        assert sorted(task.label_names) == sorted(configs[name].label_classes or ()), name
        columns = {column for role, column in task.columns.items() if role != "label"}
        assert columns == set(configs[name].text_features), name
        assert set(task.files) <= {info.filename for info in glue.url_infos.values()}, name


def test_the_table_agrees_with_tensorflow_datasets_about_squad(tmp_path):
    import tensorflow_datasets as tfds

    for config in builder_class("squad").BUILDER_CONFIGS:
        task = PUBLISHED[f"squad/{config.name}"]
        builder = tfds.builder(f"squad/{config.name}", data_dir=tmp_path)
        assert (task.kind, task.files) == ("span", (config.train_file, config.dev_file))
        assert set(task.columns.values()) <= set(builder.info.features)
