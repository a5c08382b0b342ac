"""Adds pieces for a text to the tokenizer of a model, and rows for them to its embeddings."""

import time
from pathlib import Path

from deberta_jax.checkpoint import load_pretrained, save_pretrained
from deberta_jax.new_rows import NewRows, add_rows
from deberta_jax.parameter_check import check_finite
from deberta_jax.terminal import list_names, say
from deberta_jax.tokenizers.tokenizer import Tokenizer

from ..model_folders import check_not_overwritten, model_folder, tokenizer_folder
from ..new_tokens import check_vocabulary
from .extend_vocabulary import Extension, extend_vocabulary
from .text import BadLines
from .train_tokenizer import TokenizerConfig, check_overwriting

_GENERATOR = "generator"  # folder in the output, for the generator of a pair


def extend_model(config: TokenizerConfig, source: Path) -> None:
    """Writes the extended tokenizer and the model with embeddings for the new pieces, and prints a summary.

    If the source is a pair for replaced token detection, as a release on the hub is, its generator is written into
    generator/ of the output.

    Raises:
      UserError: as `extend_vocabulary`; if the source has no model, if the tokenizer has more pieces than the model, or
        if the output has another tokenizer.
      OSError: the output cannot be written.
    """
    began = time.monotonic()
    folders = {config.output: model_folder(source)}
    if (generator := model_folder(source, generator=True)) != folders[config.output]:
        folders[config.output / _GENERATOR] = generator
    check_not_overwritten([source, *folders.values()], config.output.parent, [config.output.name])
    tokenizer = Tokenizer.from_folder(tokenizer_folder(source))
    models = {folder: load_pretrained(found) for folder, found in folders.items()}
    for folder, (model_config, params) in models.items():
        check_vocabulary(tokenizer, model_config)
        check_finite(params, where=str(folders[folder]))
    bad = BadLines()
    extension = extend_vocabulary(
        tokenizer,
        config.lines(bad),
        new_pieces=config.new_pieces,
        sample=config.sample,
        character_coverage=config.character_coverage,
        source=str(source),
    )
    files = extension.tokenizer.files()
    check_overwriting(config, files["spm.model"])
    rows = NewRows(extension.first, extension.old_ids)
    for folder, model in models.items():
        grown = add_rows(*model, rows)
        save_pretrained(folder, grown.config, grown.params, tokenizer=files)
    bad.say()
    _say_summary(config.output, extension, seconds=time.monotonic() - began)
    options = [f"--tokenizer {config.output} --init-discriminator {config.output}"]
    options += [f"--init-generator {folder}" for folder in models if folder != config.output]
    say(f"To continue pre-training: deberta-jax pretrain {' '.join(options)} --text ...")


def _say_summary(output: Path, extension: Extension, *, seconds: float) -> None:
    ids = range(extension.first, extension.tokenizer.vocab_size)
    shown = list_names([f"{piece!r} {i}" for piece, i in zip(extension.pieces, ids, strict=True)])
    saved = 1 - extension.tokens_after / extension.tokens_before
    say(
        f"Added {len(extension.pieces)} pieces in {seconds:.1f} s: {shown}.\n"
        f"The sample of the text has {extension.tokens_after:,} tokens instead of {extension.tokens_before:,}, "
        f"{saved:.1%} fewer.\n"
        f"Saved {output}, fingerprint {extension.tokenizer.fingerprint[:12]}."
    )
