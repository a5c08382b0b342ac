"""Writes small models with random weights as the folders that users bring from other libraries.

    python hub_folders.py TOKENIZER OUTPUT [NAME ...]       # in any environment with transformers, 4 or 5

It imports nothing of this library, so that an environment with sentence-transformers, PEFT, GLiNER or an older
transformers can write what only these packages write. Where a package is missing, the same layout is written by hand.
Each folder gets a neighbor NAME.npz with inputs and the logits (or hidden states) of the model that was saved.
"""

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

SIZES = {
    "vocab_size": 640,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "relative_attention": True,
    "position_buckets": 16,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
    "initializer_range": 0.3,
}
LABELS = {0: "alpha", 1: "beta", 2: "gamma"}


def model(suffix: str, **fields: Any) -> Any:
    """Returns a small DeBERTa-v3 of transformers with random weights."""
    torch.manual_seed(0)
    labels = (
        {} if suffix in ("Model", "ForMaskedLM", "ForMultipleChoice", "ForQuestionAnswering") else {"id2label": LABELS}
    )
    config = transformers.DebertaV2Config(**{**SIZES, **labels, **fields})
    built = getattr(transformers, f"DebertaV2{suffix}")(config)
    with torch.no_grad():  # transformers initializes biases with 0 and classifiers almost so
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return built.eval()


def inputs(suffix: str) -> dict[str, torch.Tensor]:
    """Returns the inputs on which models are compared."""
    ids = torch.from_numpy(np.random.default_rng(1).integers(5, 600, (2, 12)))
    return {"input_ids": ids[None] if suffix == "ForMultipleChoice" else ids}


def outputs(built: Any, suffix: str) -> np.ndarray:
    """Returns the logits, or of an encoder the hidden states."""
    with torch.no_grad():
        output = built(**inputs(suffix))
    if suffix == "ForQuestionAnswering":
        return torch.stack([output.start_logits, output.end_logits]).numpy()
    return (output[0] if suffix == "Model" else output.logits).float().numpy()


def save_tokenizer(tokenizer: Path, folder: Path) -> None:
    """Saves the tokenizer as transformers does. Version 4 writes spm.model, version 5 only tokenizer.json."""
    source = folder.parent / "tokenizer"
    source.mkdir(exist_ok=True)
    shutil.copyfile(tokenizer / "spm.model", source / "spm.model")
    transformers.DebertaV2Tokenizer.from_pretrained(str(source)).save_pretrained(folder)


def plain(suffix: str, **fields: Any) -> Callable[[Path, Path], tuple[Any, str, str]]:
    """Returns a writer of what `save_pretrained` of transformers writes."""

    def write(tokenizer: Path, folder: Path) -> tuple[Any, str, str]:
        built = model(suffix, **fields)
        built.save_pretrained(folder)
        save_tokenizer(tokenizer, folder)
        return built, suffix, f"transformers {transformers.__version__}"

    return write


def prefixed(prefix: str, *, container: str | None = None, file: str = "pytorch_model.bin") -> Callable[..., Any]:
    """Returns a writer of a state dict whose names have a prefix, inside a dict if there is a container."""

    def write(tokenizer: Path, folder: Path) -> tuple[Any, str, str]:
        built = model("ForSequenceClassification")
        built.config.save_pretrained(folder)
        save_tokenizer(tokenizer, folder)
        state = {prefix + key: tensor for key, tensor in built.state_dict().items()}
        torch.save({container: state, "epoch": 3} if container else state, folder / file)
        return built, "ForSequenceClassification", f"torch {torch.__version__.split('+')[0]}"

    return write


def compiled(tokenizer: Path, folder: Path) -> tuple[Any, str, str]:
    """Saves the state dict of a model that `torch.compile` wraps, which compiles nothing before its first call."""
    built = model("ForSequenceClassification")
    built.config.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    save_file(
        {key: value.contiguous() for key, value in torch.compile(built).state_dict().items()},
        folder / "model.safetensors",
    )
    return built, "ForSequenceClassification", f"torch {torch.__version__.split('+')[0]}"


def bfloat16(tokenizer: Path, folder: Path) -> tuple[Any, str, str]:
    built = model("ForSequenceClassification").to(torch.bfloat16)
    built.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return built.float(), "ForSequenceClassification", f"transformers {transformers.__version__}"


def sharded(tokenizer: Path, folder: Path) -> tuple[Any, str, str]:
    built = model("ForSequenceClassification")
    built.save_pretrained(folder, max_shard_size="50KB")
    save_tokenizer(tokenizer, folder)
    assert (folder / "model.safetensors.index.json").is_file()
    return built, "ForSequenceClassification", f"transformers {transformers.__version__}"


def cross_encoder(tokenizer: Path, folder: Path) -> tuple[Any, str, str]:
    built, suffix, by = plain("ForSequenceClassification", num_labels=1, id2label={0: "LABEL_0"})(tokenizer, folder)
    if importlib.util.find_spec("sentence_transformers"):
        from sentence_transformers import CrossEncoder

        source = folder.rename(folder.with_name("cross_encoder_source"))
        CrossEncoder(str(source), device="cpu").save_pretrained(str(folder))
        return built, suffix, f"sentence-transformers {version('sentence-transformers')}"
    activation = {"activation_fn": "torch.nn.modules.activation.Sigmoid", "version": "5.1.0"}
    edit(folder / "config.json", sentence_transformers=activation)
    return built, suffix, f"{by}, sentence-transformers' fields by hand"


def sentence_transformer(tokenizer: Path, folder: Path) -> tuple[Any, str, str]:
    built, suffix, by = plain("Model")(tokenizer, folder)
    if importlib.util.find_spec("sentence_transformers"):
        from sentence_transformers import SentenceTransformer

        source = folder.rename(folder.with_name("sentence_transformer_source"))
        SentenceTransformer(str(source), device="cpu").save_pretrained(str(folder))
        return built, suffix, f"sentence-transformers {version('sentence-transformers')}"
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "config_sentence_transformers.json").write_text("{}")
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64, "do_lower_case": False}))
    return built, suffix, f"{by}, sentence-transformers' files by hand"


def peft_merged(tokenizer: Path, folder: Path) -> tuple[Any, str, str]:
    if not importlib.util.find_spec("peft"):
        # Without `merge_and_unload`, the state of the wrapped model has this prefix.
        built, suffix, by = prefixed("base_model.model.")(tokenizer, folder)
        return built, suffix, f"{by}, PEFT's prefix by hand"
    import peft

    settings = peft.LoraConfig(
        target_modules=["query_proj", "value_proj"], task_type="SEQ_CLS", init_lora_weights=False
    )
    built = peft.get_peft_model(model("ForSequenceClassification"), settings).merge_and_unload().eval()
    built.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return built, "ForSequenceClassification", f"peft {version('peft')}"


def gliner(tokenizer: Path, folder: Path) -> tuple[Any, str, str]:
    """Writes the encoder of GLiNER beside layers of its own, and its configuration, by hand."""
    built = model("Model")
    save_tokenizer(tokenizer, folder)
    fields = {"model_name": "microsoft/deberta-v3-small", "max_len": 384, "encoder_config": built.config.to_dict()}
    (folder / "gliner_config.json").write_text(json.dumps(fields))
    state = {f"token_rep_layer.bert_layer.model.{key}": tensor for key, tensor in built.state_dict().items()}
    state |= {"rnn.lstm.weight_ih_l0": torch.zeros(64, 32), "prompt_rep_layer.0.weight": torch.zeros(32, 32)}
    torch.save(state, folder / "pytorch_model.bin")
    return built, "Model", f"torch {torch.__version__.split('+')[0]}, GLiNER's names by hand"


def microsoft(tokenizer: Path, folder: Path) -> tuple[Any, str, str]:
    built = model("ForSequenceClassification")
    folder.mkdir()
    shutil.copyfile(tokenizer / "spm.model", folder / "spm.model")
    fields = {**SIZES, "pos_att_type": "p2c|c2p", "max_relative_positions": -1, "num_labels": 3, "vocab_type": "spm"}
    fields |= {"hidden_act": "gelu", "layer_norm_eps": 1e-7, "padding_idx": 0, "model_type": "deberta-v2"}
    (folder / "model_config.json").write_text(json.dumps(fields))
    torch.save(built.half().state_dict(), folder / "pytorch_model.bin")
    return built.float(), "ForSequenceClassification", "layout by hand"


def edit(path: Path, **fields: Any) -> None:
    """Sets fields of a JSON object."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}, indent=2))


WRITERS: dict[str, Callable[[Path, Path], tuple[Any, str, str]]] = {
    "sequence_classification": plain("ForSequenceClassification"),
    "token_classification": plain("ForTokenClassification"),
    "question_answering": plain("ForQuestionAnswering"),
    "masked_lm": plain("ForMaskedLM"),
    "multiple_choice": plain("ForMultipleChoice"),
    "cross_encoder": cross_encoder,
    "sentence_transformer": sentence_transformer,
    "peft_merged": peft_merged,
    "gliner_encoder": gliner,
    "torch_compile": compiled,
    "data_parallel": prefixed("module."),
    "lightning": prefixed("model.", container="state_dict", file="last.ckpt"),
    "bfloat16": bfloat16,
    "sharded": sharded,
    "microsoft": microsoft,
}


def write(name: str, tokenizer: Path, folder: Path) -> None:
    """Writes one folder, and its neighbor NAME.npz with class, inputs, outputs and the packages that wrote it."""
    built, suffix, written_by = WRITERS[name](tokenizer, folder)
    np.savez(folder.with_suffix(".npz"), suffix=suffix, written_by=written_by, outputs=outputs(built.float(), suffix))


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    for case in sys.argv[3:] or WRITERS:
        write(case, Path(sys.argv[1]), Path(sys.argv[2]) / case)
