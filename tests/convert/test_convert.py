"""Conversion between PyTorch's files and ours: names, layouts, files, damage, and transformers itself."""

import json
import os
import pickle
import struct
import sys
import types
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import models
from deberta_jax.config import DebertaConfig
from deberta_jax.convert import from_pytorch, load_pytorch, mapping, quirks, save_pytorch, to_pytorch
from deberta_jax.convert.mapping import entries, to_params, to_state_dict
from deberta_jax.convert.pickle_reader import read_bin
from deberta_jax.convert.quirks import ConversionError

from ..support.paths import GOLDEN
from ..support.pytorch_files import (
    MLM,
    RTD,
    RTD_CASES,
    V1,
    V2_CONV,
    V3,
    Call,
    assert_same,
    bin_bytes,
    golden,
    golden_json,
    published_state,
    random_state,
    write_json,
    write_safetensors,
)

CASES = sorted(folder.name for folder in GOLDEN.glob("*") if folder.name.startswith(("encoder", "mlm", "head", "sift")))
ODD = V2_CONV.replace(
    share_att_key=False,
    embedding_size=12,
    type_vocab_size=3,
    conv_groups=4,
    position_biased_input=True,
    mlm_head="legacy",  # the one of transformers' two that can have another embedding size
)


# ---------------------------------------------------------------------------------------------------- the table


@pytest.mark.parametrize("config", [V1, V2_CONV, V3, ODD, V3.replace(relative_attention=False, pos_att_type=())])
def test_the_table_is_bijective(config):
    table = entries(config)
    assert len({entry.key for entry in table}) == len({entry.path for entry in table}) == len(table)
    state = random_state(config, *mapping.PARTS)
    back = to_state_dict(to_params(state, config), config)
    assert back.keys() == state.keys()
    assert_same(back, state)


@pytest.mark.parametrize("case", CASES)
def test_golden_weights_come_back_bit_for_bit(case):
    state, config = golden(case), DebertaConfig.from_json(golden_json(case))
    params = to_params(state, config)
    assert_same(to_state_dict(params, config), state)
    kernel = params["deberta"]["encoder"]["layer_0"]["feed_forward"]["output"]["kernel"]
    np.testing.assert_array_equal(kernel, state["deberta.encoder.layer.0.output.dense.weight"].T)
    assert kernel.flags.c_contiguous
    assert kernel.dtype == np.float32


@pytest.mark.parametrize("side", ["generator", "discriminator"])
@pytest.mark.parametrize("case", RTD_CASES)
def test_golden_pairs_come_back_bit_for_bit(case, side):
    state, config = golden(case, f"weights/{side}."), DebertaConfig.from_json(golden_json(case)[side])
    shared = case == "rtd_es" and side == "discriminator"
    params = to_params(state, config, shared_embeddings=shared)
    assert_same(to_state_dict(params, config, shared_embeddings=shared), state)
    tables = params["deberta"]["embeddings"]
    differences = side == "discriminator" and case in ("rtd_step", "rtd_gdes_joint")
    if not shared:
        assert list(tables["word_embeddings"]) == ["delta" if differences else "embedding"]
    else:
        with pytest.raises(ConversionError, match=r"missing: deberta.embeddings.word_embeddings.weight; unex"):
            to_params(state, config)


@pytest.mark.parametrize("config", [V3, ODD], ids=["v3", "odd"])
@pytest.mark.parametrize(
    ("model", "heads", "classes"),
    [
        (models.DebertaForMaskedLM, [MLM], 1),
        (models.DebertaForReplacedTokenDetection, [RTD], 1),
        (models.DebertaForSequenceClassification, ["pooler", "classifier"], 2),
        (models.DebertaForMultipleChoice, ["pooler", "classifier"], 1),
        (models.DebertaForTokenClassification, ["classifier"], 2),
        (models.DebertaForQuestionAnswering, ["span_classifier"], 2),
    ],
)
def test_converted_trees_are_those_of_the_models(config, model, heads, classes):
    choices = (1, 2, 4) if model is models.DebertaForMultipleChoice else (1, 4)
    want = jax.eval_shape(model(config).init, jax.random.key(0), jnp.ones(choices, jnp.int32))["params"]
    params = to_params(random_state(config, *heads, classes=classes), config)
    if "position_embeddings" not in want["deberta"]["embeddings"]:
        del params["deberta"]["embeddings"]["position_embeddings"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, want)


def test_what_does_not_fit_is_named_on_both_sides():
    state = random_state(V3)
    for i in range(2):
        state[f"deberta.encoder.layer.{i}.attention.self.surprise"] = state.pop(
            f"deberta.encoder.layer.{i}.attention.self.key_proj.bias"
        )
    with pytest.raises(ConversionError) as caught:
        to_params(state, V3)
    assert "missing: deberta.encoder.layer.*.attention.self.key_proj.bias (2 times)" in str(caught.value)
    assert "unexpected: deberta.encoder.layer.*.attention.self.surprise (2 times)" in str(caught.value)
    params = to_params(random_state(V3), V3)
    params["deberta"]["encoder"]["layer_1"]["extra"] = params["deberta"]["embeddings"].pop("layer_norm")
    with pytest.raises(ConversionError, match=r"missing: deberta/embeddings/layer_norm/scale.*unexpected: deberta/enc"):
        to_state_dict(params, V3)


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (V3, {"deberta.embeddings.LayerNorm.bias": np.zeros(3, np.float32)}, r"bias has shape \(3,\).*for \(16,\)"),
        (V3, {"deberta.embeddings.LayerNorm.bias": np.zeros(16, np.int64)}, "is int64; it must be"),
        (V3, {"deberta.embeddings.LayerNorm.bias": "text"}, "is str; it must be"),
        (V3.replace(num_hidden_layers=10**9), {}, "have 2 layers, but the configuration says num_hidden_layers 10000"),
        (V3.replace(vocab_size=10**15), {}, r"word_embeddings.weight has shape \(50, 16\)"),
        (V3.replace(norm_rel_ebd="none"), {}, "unexpected: deberta.encoder.LayerNorm.bias"),
        (V3.replace(type_vocab_size=2), {}, "missing: deberta.embeddings.token_type_embeddings.weight; unexp"),
        (V3, {"classifier.weight": np.zeros((3, 16), np.float32)}, r"missing: classifier\.bias; unexpected: nothing"),
        (
            V3,
            {"classifier.weight": np.zeros((3, 16), np.float32), "classifier.bias": np.zeros(4, np.float32)},
            r"is for 3 classes, but classifier\.bias for 4",
        ),
    ],
)
def test_weights_that_contradict_the_configuration(config, change, message):
    with pytest.raises(ConversionError, match=message) as caught:
        to_params(random_state(V3) | change, config)
    assert "\n" not in str(caught.value)


def test_position_embeddings_are_needed_only_where_the_input_has_them():
    state = random_state(V3)
    del state["deberta.embeddings.position_embeddings.weight"]
    assert "position_embeddings" not in to_params(state, V3)["deberta"]["embeddings"]
    with pytest.raises(ConversionError, match=r"missing: deberta.embeddings.position_embeddings.weight"):
        to_params(state, V3.replace(position_biased_input=True))


# -------------------------------------------------------------------------------------------------- odd layouts


def test_version_1_layout_equals_version_2_names():
    config = DebertaConfig.from_json(golden_json("encoder_v1"))
    hub = to_params(golden("encoder_v1", "weights_v1hub/"), config)
    assert_same(hub, to_params(golden("encoder_v1"), config))


def test_old_names_prefixes_and_bookkeeping():
    state = random_state(V3, MLM, RTD)
    want = to_params(state, V3)
    names = {"deberta.": "bert.", "mask_predictions.classifier": "mask_predictions.classifer"}
    old = to_pytorch._rename(state, names)
    old |= {"config": {"hidden_size": 16}, "bert.embeddings.position_ids": np.arange(32)[None]}
    assert_same(to_params(old, V3), want)
    encoder = random_state(V3)
    bare = {key.removeprefix("deberta."): encoder[key] for key in encoder}
    assert_same(to_params(bare, V3), to_params(encoder, V3))
    with pytest.raises(ConversionError, match="twice"):
        to_params(encoder | bare, V3)


def test_legacy_masked_lm_head_with_a_decoder_or_without():
    state = random_state(V3, MLM)
    want = to_params(state, V3)
    legacy = to_pytorch._rename(state, {ours: old for old, ours in quirks.LEGACY_MLM_HEAD.items()})
    assert_same(to_params(legacy, V3), want)
    words, bias = legacy["deberta.embeddings.word_embeddings.weight"], legacy["cls.predictions.bias"]
    tied = legacy | {"cls.predictions.decoder.weight": words, "cls.predictions.decoder.bias": bias}
    assert_same(to_params(tied, V3), want)
    del tied["cls.predictions.bias"]
    assert_same(to_params(tied, V3), want)
    with pytest.raises(ConversionError, match="only a tied decoder"):
        to_params(tied | {"cls.predictions.decoder.weight": words + 1}, V3)


def test_gdes_differences_beside_and_instead_of_the_sum():
    state = random_state(V3, RTD)
    words, positions = "deberta.embeddings.word_embeddings.", "deberta.embeddings.position_embeddings."
    beside = state | {
        f"{words}_weight": state[f"{words}weight"] + 1,
        f"{positions}_weight": state[f"{positions}weight"],
    }
    assert_same(to_params(beside, V3), to_params(state, V3))
    instead = {f"{words}_weight" if key == f"{words}weight" else key: state[key] for key in state}
    tables = to_params(instead, V3)["deberta"]["embeddings"]
    assert list(tables["word_embeddings"]) == ["delta"]
    assert list(tables["position_embeddings"]) == ["embedding"]


# -------------------------------------------------------------------------------------------------- files, read


@pytest.mark.parametrize("name", ["base", "v2-xxlarge", "v3-base", "v3-xsmall", "mdeberta", "generator"])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_files_like_the_published_ones(tmp_path, name, kind):
    config, state = published_state(name)
    filename = "pytorch_model.generator.bin" if name == "generator" else None
    write_json(tmp_path, config, "generator_config.json" if filename else "config.json")
    if kind == "bin" or filename:
        path, extra = (
            tmp_path / (filename or "pytorch_model.bin"),
            {"config": {"hidden_size": 16}} if name == "base" else {},
        )
        path.write_bytes(bin_bytes(state, extra=extra))
    else:
        write_safetensors(tmp_path, config, state)
    loaded_config, params = load_pytorch(tmp_path, filename=filename)
    assert loaded_config == config
    assert_same(params, to_params(state, config))
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
    assert (RTD in params) == (name in ("v3-base", "v3-xsmall", "mdeberta"))


def test_bfloat16_is_widened_exactly(tmp_path):
    state = {key: array.astype(jnp.bfloat16) for key, array in random_state(V3).items()}
    write_safetensors(tmp_path / "a", V3, state)
    write_json(tmp_path / "b", V3)
    (tmp_path / "b" / "weights.bin").write_bytes(bin_bytes(state))
    for folder in (tmp_path / "a", tmp_path / "b"):
        params = load_pytorch(folder)[1]
        words = params["deberta"]["embeddings"]["word_embeddings"]["embedding"]
        np.testing.assert_array_equal(words, state["deberta.embeddings.word_embeddings.weight"].astype(np.float32))


def test_include_loads_parts_and_says_what_is_there(tmp_path):
    write_safetensors(tmp_path, V3, random_state(V3, MLM, RTD))
    assert list(load_pytorch(tmp_path, include=["deberta", "mlm_head"])[1]) == ["deberta", "mlm_head"]
    with pytest.raises(ConversionError, match="no classifier in these weights; they have deberta, mlm_head, rtd_head"):
        load_pytorch(tmp_path, include=["classifier"])
    with pytest.raises(ValueError, match="include has lm_head; the parts are deberta, mlm_head"):
        load_pytorch(tmp_path, include=["lm_head"])


def test_the_classifier_says_how_many_labels_there_are(tmp_path):
    write_safetensors(tmp_path, V3, random_state(V3, "pooler", "classifier", classes=5))
    assert load_pytorch(tmp_path)[0] == V3.replace(num_labels=5)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_and_their_index(tmp_path, kind):
    state = random_state(V3, MLM)
    names = {key: f"part-{i % 2}.{kind}" for i, key in enumerate(state)}
    write_json(tmp_path, V3)
    for name in set(names.values()):
        shard = {key: state[key] for key in state if names[key] == name}
        if kind == "bin":
            (tmp_path / name).write_bytes(bin_bytes(shard))
        else:
            write_safetensors(tmp_path, V3, shard, name)
    index = tmp_path / ("model.safetensors.index.json" if kind == "safetensors" else "pytorch_model.bin.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert_same(load_pytorch(tmp_path)[1], to_params(state, V3))

    index.write_text(json.dumps({"weight_map": {**names, "one.more": f"part-0.{kind}"}}))
    with pytest.raises(ConversionError, match=r"does not hold what the index says: .'one.more'"):
        load_pytorch(tmp_path)
    index.write_text(json.dumps({"weight_map": {"key": "../elsewhere.bin"}}))
    with pytest.raises(ConversionError, match="shards must stand beside their index"):
        load_pytorch(tmp_path)
    index.write_text(json.dumps({"weight_map": {"key": "gone.bin"}}))
    with pytest.raises(FileNotFoundError, match=r"names the shard gone.bin, which is not there"):
        load_pytorch(tmp_path)
    index.write_text("[]")
    with pytest.raises(ConversionError, match="no index of shards"):
        load_pytorch(tmp_path)


def test_files_that_are_not_there(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="give one, or a hub name such as"):
        load_pytorch(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"has no weights; looked for model.safetensors"):
        load_pytorch(tmp_path)
    path = write_safetensors(tmp_path, V3, random_state(V3), "a.safetensors")
    with pytest.raises(FileNotFoundError, match="is a file; give its folder"):
        load_pytorch(path)
    load_pytorch(tmp_path)
    write_safetensors(tmp_path, V3, random_state(V3), "b.safetensors")
    with pytest.raises(FileNotFoundError, match=r"several weight files \(a.safetensors, b.safetensors\)"):
        load_pytorch(tmp_path)
    load_pytorch(tmp_path, filename="b.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no file c.bin"):
        load_pytorch(tmp_path, filename="c.bin")
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config.json or model_config.json, which a.safetensors needs"):
        load_pytorch(tmp_path, filename="a.safetensors")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match="pip install huggingface_hub"):
        load_pytorch("someone/some-model")


def test_hub_names_are_fetched_with_safetensors_first(tmp_path, monkeypatch):
    state, asked = random_state(V3), []

    def snapshot_download(name, *, allow_patterns, ignore_patterns):
        asked.append((name, allow_patterns[-1], ignore_patterns))
        write_json(tmp_path, V3)
        if "pytorch_model*.bin*" in allow_patterns:
            (tmp_path / "pytorch_model.bin").write_bytes(bin_bytes(state))
        if name == "some/gone":
            raise OSError("cannot be reached\nand a page of details")
        return str(tmp_path)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    assert_same(load_pytorch("some/model")[1], to_params(state, V3))
    patterns = ("*.safetensors*", "pytorch_model*.bin*")
    assert asked == [("some/model", pattern, ["*generator*"]) for pattern in patterns]
    with pytest.raises(FileNotFoundError, match=r"the hub did not give it: cannot be reached$"):
        load_pytorch("some/gone")


# ------------------------------------------------------------------------------------------------ files, damaged


def test_a_pickle_that_would_run_a_command_is_refused(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    marker = tmp_path / "marker"
    path.write_bytes(bin_bytes({}, extra={"weight": Call(os.system, f"touch {marker}")}))
    with pytest.raises(ConversionError, match=r"asks for posix.system, which is no part of a tensor"):
        read_bin(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"\x80\x02(ios\nsystem\n.", "its pickle uses INST"),
        (b"\x80\x02]r\xff\xff\xff\x7f.", "numbers more values than it has bytes"),
        (b"\x80\x02].", "holds a list, not a table"),
        (b"\x80\x02}K\x01K\x01s.", "holds a dict, not a table from names"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "damaged or no PyTorch file: TypeError"),
        (b"\x80\x02ctorch.nn\nLinear\n.", "asks for torch.nn.Linear"),
        (b"\x80\x02", "damaged"),
        (b"", "damaged"),
    ],
)
def test_pickles_that_are_no_state_dict(tmp_path, program, message):
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
    with pytest.raises(ConversionError, match=message) as caught:
        read_bin(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (5,), (1,)), (1, (4,), (1,)), (0, (2, 2), (3, 1)), (0, (10**12,), (0,)), (-1, (2,), (1,)), (0, (2,), (-1,))],
)
def test_tensors_stay_inside_their_storage(tmp_path, offset, size, stride):
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(bin_bytes({"x": np.arange(4, dtype=np.float32)}, view=(offset, size, stride)))
    with pytest.raises(ConversionError, match="a tensor"):
        read_bin(path)


def test_views_of_a_storage_are_read_as_they_are(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(bin_bytes({"x": np.arange(12, dtype=np.float32)}, view=(1, (3, 2), (2, 5))))
    np.testing.assert_array_equal(read_bin(path)["x"], [[1, 6], [3, 8], [5, 10]])
    path.write_bytes(bin_bytes({"x": np.arange(2, dtype=np.float32)}, view=(1, (), ())))
    np.testing.assert_array_equal(read_bin(path)["x"], np.float32(1))
    path.write_bytes(bin_bytes({"x": np.zeros(0, np.float32)}, view=(0, (0, 3), (3, 1))))
    assert read_bin(path)["x"].shape == (0, 3)


def test_archives_that_pytorch_does_not_write(tmp_path):
    state = {"x": np.zeros(10**6, np.float32)}
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(bin_bytes(state, compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(ConversionError, match="is compressed"):
        read_bin(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**7))
    with pytest.raises(ConversionError, match=r"data.pkl unpacks to 10000000 bytes"):
        read_bin(path)
    data = bytearray(bin_bytes({"x": np.ones(1000, np.float32)}))
    data[data.index(b"\x00\x00\x80\x3f" * 4) + 400] ^= 1
    path.write_bytes(data)
    with pytest.raises(ConversionError, match="data/0 does not match its checksum"):
        read_bin(path)


def test_the_old_format_needs_torch(tmp_path, monkeypatch):
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(pickle.dumps(119547037146038801333356, protocol=2))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConversionError, match=r"is no zip archive; if it was saved before PyTorch 1.6"):
        read_bin(path)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_mutated_files_are_refused_or_loaded(tmp_path, monkeypatch, kind):
    monkeypatch.setitem(sys.modules, "torch", None)
    config, state = V3.replace(num_hidden_layers=1), random_state(V3.replace(num_hidden_layers=1))
    path = tmp_path / ("model.safetensors" if kind == "safetensors" else "pytorch_model.bin")
    write_json(tmp_path, config)
    path.write_bytes(bin_bytes(state))
    if kind == "safetensors":
        write_safetensors(tmp_path, config, state)
    whole = path.read_bytes()
    interesting = struct.unpack("<Q", whole[:8])[0] if kind == "safetensors" else whole.index(b"byteorder")
    rng, messages = np.random.default_rng(1), []
    for attempt in range(150):
        data = bytearray(whole)
        if attempt % 5 == 0:
            del data[rng.integers(len(data)) :]
        reach = min(interesting, len(data)) if attempt % 2 else len(data)
        for position in rng.integers(0, reach + 1, rng.integers(1, 4)):
            data[position : position + 1] = bytes([rng.integers(256)])
        path.unlink()
        path.write_bytes(data)
        try:
            loaded = load_pytorch(tmp_path)[1]
        except ConversionError as error:
            messages.append(str(error))
        else:
            assert jax.tree.map(np.shape, loaded) == jax.tree.map(np.shape, to_params(state, config))
    assert len(messages) > 50
    assert "\n" not in "".join(messages)


# ------------------------------------------------------------------------------------------------- files, written


@pytest.mark.parametrize("config", [V1, V2_CONV, V3, ODD], ids=["v1", "v2", "v3", "odd"])
@pytest.mark.parametrize("heads", [[], [MLM, RTD], ["pooler", "classifier"], ["span_classifier"]], ids="-".join)
def test_what_is_saved_comes_back_bit_for_bit(tmp_path, config, heads):
    config = config.replace(num_labels=3 if "classifier" in heads else 2)
    params = to_params(random_state(config, *heads), config)
    save_pytorch(tmp_path / "new" / "folder", config, jax.tree.map(jnp.asarray, params))
    loaded_config, loaded = load_pytorch(tmp_path / "new" / "folder")
    assert loaded_config == config
    assert_same(loaded, params)
    files = sorted((tmp_path / "new" / "folder").iterdir())
    assert [file.name for file in files] == ["config.json", "model.safetensors"]
    assert files[0].stat().st_mode == files[1].stat().st_mode


def test_version_1_is_written_as_published_unless_a_key_has_a_bias(tmp_path):
    config, state = published_state("base")
    params = to_params(state, config)
    save_pytorch(tmp_path / "v1", config, params)
    assert_same(load_pytorch(tmp_path / "v1")[1], params)
    fields = json.loads((tmp_path / "v1" / "config.json").read_text())
    assert (fields["model_type"], fields["architectures"]) == ("deberta", ["DebertaForMaskedLM"])
    from safetensors.numpy import load_file

    assert_same(load_file(tmp_path / "v1" / "model.safetensors"), state)
    params["deberta"]["encoder"]["layer_1"]["attention"]["key_proj"]["bias"][3] = 1e-9
    save_pytorch(tmp_path / "v2", config, params)
    assert json.loads((tmp_path / "v2" / "config.json").read_text())["model_type"] == "deberta-v2"
    assert_same(load_pytorch(tmp_path / "v2")[1], params)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_half_precision_is_written_as_such(tmp_path, dtype):
    params = to_params(random_state(V3), V3)
    save_pytorch(tmp_path, V3, params, dtype=dtype)
    loaded = load_pytorch(tmp_path)[1]
    assert_same(loaded, jax.tree.map(lambda leaf: leaf.astype(dtype).astype(np.float32), params))
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == np.dtype(dtype).name
    header = (tmp_path / "model.safetensors").read_bytes()
    assert header.count(b"BF16" if dtype is jnp.bfloat16 else b'"F16') == len(jax.tree.leaves(params))


def test_what_transformers_cannot_hold_is_refused(tmp_path):
    params = to_params(random_state(V3, "token_proj", "classifier"), V3)
    with pytest.raises(ConversionError, match="no layer for token_proj"):
        save_pytorch(tmp_path, V3, params)
    params = to_params(random_state(V3), V3)
    words = params["deberta"]["embeddings"]["word_embeddings"]
    params["deberta"]["embeddings"]["word_embeddings"] = {"delta": words["embedding"]}
    with pytest.raises(ConversionError, match=r"holds differences .delta.*standalone_discriminator"):
        save_pytorch(tmp_path, V3, params)
    params["deberta"]["embeddings"]["word_embeddings"] = words
    wide = V3.replace(attention_head_size=4)
    with pytest.raises(ConversionError, match="attention_head_size 4 to be hidden_size 16"):
        save_pytorch(tmp_path, wide, to_params(random_state(wide), wide))
    with pytest.raises(ValueError, match="dtype is int8; it must be one of float32, float16, bfloat16"):
        save_pytorch(tmp_path, V3, params, dtype=np.int8)
    params["deberta"]["embeddings"]["layer_norm"]["bias"][0] = 1e6
    with pytest.raises(ConversionError, match=r"LayerNorm.bias has values that float16 cannot hold"):
        save_pytorch(tmp_path, V3, params, dtype=np.float16)
    assert os.listdir(tmp_path) == []


def test_a_failed_save_leaves_the_old_files(tmp_path, monkeypatch):
    params = to_params(random_state(V3), V3)
    save_pytorch(tmp_path, V3, params)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(self, *_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space"):
        save_pytorch(tmp_path, V3, jax.tree.map(np.zeros_like, params))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_commands_go_there_and_back(tmp_path, capsys):
    state = random_state(V3, MLM)
    write_safetensors(tmp_path / "source", V3, state)
    (tmp_path / "source" / "spm.model").write_bytes(b"pieces")
    from_pytorch.main(from_pytorch.ConvertConfig(source=str(tmp_path / "source"), destination=tmp_path / "ours"))
    to_pytorch.main(to_pytorch.ExportConfig(source=tmp_path / "ours", destination=tmp_path / "theirs"))
    assert "parameters (deberta, mlm_head)" in capsys.readouterr().out
    assert (tmp_path / "theirs" / "spm.model").read_bytes() == b"pieces"
    assert_same(load_pytorch(tmp_path / "theirs")[1], to_params(state, V3))


# ------------------------------------------------------------------------------------------ torch and transformers


@pytest.mark.torch
@pytest.mark.parametrize("protocol", [2, 4])
def test_files_that_torch_wrote(tmp_path, protocol):
    torch = pytest.importorskip("torch", reason="torch is not installed; it writes the files of this test")
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    module = torch.nn.Linear(3, 2)
    state = module.state_dict()  # an OrderedDict with attributes
    state |= {
        "transposed": base.t(),
        "column": base[:, 1],
        "strided": base[1::2, ::3],
        "parameter": torch.nn.Parameter(base[2:]),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "half": base.half(),
        "brain": base.bfloat16(),
        "ids": torch.arange(5)[2:],
        "flags": torch.tensor([True, False]),
    }
    path = tmp_path / "pytorch_model.bin"
    torch.save({**state, "config": {"name": "x", "rate": 0.5, "list": [1, None, True]}}, path, pickle_protocol=protocol)
    read = read_bin(path)
    assert read.pop("config") == {"name": "x", "rate": 0.5, "list": [1, None, True]}
    assert read.keys() == state.keys()
    for key, tensor in state.items():
        assert read[key].dtype.name == str(tensor.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(read[key].astype(np.float32), tensor.detach().float().numpy())


@pytest.mark.torch
def test_the_old_format_is_read_with_torch(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed; it reads the format before PyTorch 1.6")
    state = random_state(V3, MLM)
    tensors = {key: torch.from_numpy(array).bfloat16() for key, array in state.items()}
    write_json(tmp_path, V3)
    path = tmp_path / "pytorch_model.bin"
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    want = {key: array.astype(jnp.bfloat16) for key, array in state.items()}
    assert_same(load_pytorch(tmp_path)[1], to_params(want, V3))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ConversionError, match="is damaged or no PyTorch file"):
        load_pytorch(tmp_path)
    torch.save({"x": Call(os.system, "true")}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ConversionError, match="is damaged or no PyTorch file"):
        load_pytorch(tmp_path)


TRANSFORMERS = [
    ("v2", [], "Model"),
    ("v3", [], "Model"),
    ("odd", [], "Model"),
    ("bert", [], "Model"),
    ("v1", [], "Model"),
    ("v1-bias", [], "Model"),
    ("v3", [MLM, RTD], "ForMaskedLM"),
    ("v1", [MLM], "ForMaskedLM"),
    ("odd", [MLM], "ForMaskedLM"),
    ("v3", ["pooler", "classifier"], "ForSequenceClassification"),
    ("v1", ["pooler", "classifier"], "ForSequenceClassification"),
    ("v3", ["classifier"], "ForTokenClassification"),
    ("v3", ["span_classifier"], "ForQuestionAnswering"),
    ("v3", ["pooler", "classifier"], "ForMultipleChoice"),
]


@pytest.mark.torch
@pytest.mark.parametrize(("name", "heads", "suffix"), TRANSFORMERS)
def test_transformers_loads_every_weight_and_saves_what_we_read(tmp_path, name, heads, suffix):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed; it loads these exports")
    bert = V3.replace(relative_attention=False, pos_att_type=(), position_buckets=-1, position_biased_input=True)
    config = {"v1": V1, "v1-bias": V1, "v2": V2_CONV, "v3": V3, "odd": ODD, "bert": bert}[name]
    config = config.replace(num_labels=1 if suffix == "ForMultipleChoice" else 2)
    state = random_state(config, *heads, classes=config.num_labels)
    if name == "v1":
        state = {key: array * (not key.endswith("key_proj.bias")) for key, array in state.items()}
    params = to_params(state, config)
    if name == "bert":
        del params["deberta"]["encoder"]["layer_norm"]
        config = config.replace(norm_rel_ebd="none")
    save_pytorch(tmp_path / "ours", config, params)

    kind = getattr(transformers, ("Deberta" if name == "v1" else "DebertaV2") + suffix)
    model, info = kind.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    assert model.dtype.itemsize == 4
    fields = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert fields.get("architectures") == (None if suffix == "ForMultipleChoice" else [kind.__name__])

    model.save_pretrained(tmp_path / "theirs")
    config_back, params_back = load_pytorch(tmp_path / "theirs")
    if not config.position_biased_input:
        del params["deberta"]["embeddings"]["position_embeddings"]  # transformers has dropped it
        config = config.replace(mlm_head="bert") if MLM in heads else config  # and without it there is no decoder
    params.pop(RTD, None)
    assert_same(params_back, params)
    assert config_back == config


@pytest.mark.torch
def test_transformers_legacy_masked_lm_stays_legacy_and_gives_the_same_numbers_as_the_other(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed; it runs both heads")
    torch = pytest.importorskip("torch", reason="torch is not installed; it runs both heads")
    fields = {**V3.to_json(), "model_type": "deberta-v2", "initializer_range": 0.3}
    legacy = transformers.DebertaV2ForMaskedLM(transformers.DebertaV2Config(**fields, legacy=True)).eval()
    legacy.save_pretrained(tmp_path / "legacy")
    config, params = load_pytorch(tmp_path / "legacy")
    assert config.mlm_head == "legacy"
    ids = torch.arange(1, 21).reshape(2, 10)
    for form in ("legacy", "bert"):
        save_pytorch(tmp_path / form, config.replace(mlm_head=form), params)
        assert load_pytorch(tmp_path / form)[0].mlm_head == form
        model, info = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / form, output_loading_info=True)
        assert not any(info.values()), info
        assert model.config.legacy == (form == "legacy")
        with torch.no_grad():
            torch.testing.assert_close(model.eval()(ids).logits, legacy(ids).logits)


def test_the_form_of_masked_lm_is_that_of_the_file(tmp_path):
    """Its names say so, whatever config.json says; the enhanced mask decoder needs its position table."""
    state = random_state(V3, MLM)
    legacy = to_pytorch._rename(state, {ours: old for old, ours in quirks.LEGACY_MLM_HEAD.items()})
    positions = "deberta.embeddings.position_embeddings.weight"
    without = {key: array for key, array in state.items() if key != positions}
    cases = [("emd", state, "emd"), ("emd", legacy, "legacy"), ("emd", without, "bert")]
    for given, tensors, form in [*cases, ("bert", state, "bert"), ("legacy", state, "bert")]:
        write_safetensors(tmp_path, V3.replace(mlm_head=given), tensors)
        assert load_pytorch(tmp_path)[0] == V3.replace(mlm_head=form)


def test_float64_is_rounded_and_refused_where_float32_cannot_hold_it():
    state = {key: array.astype(np.float64) + 1e-12 for key, array in random_state(V3).items()}
    assert_same(to_params(state, V3), to_params({key: array.astype(np.float32) for key, array in state.items()}, V3))
    state["deberta.embeddings.LayerNorm.bias"][2] = 1e300
    with pytest.raises(ConversionError, match=r"embeddings.LayerNorm.bias has values that float32 cannot hold"):
        to_params(state, V3)
