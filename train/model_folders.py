"""Models and tokenizers that a user names by PyTorch files or on the Hugging Face hub, as folders.

The only module of train/ that calls convert/, for the commands, which may use both. A folder in the format of this
library needs nothing of convert/.
"""

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from deberta_jax.embedded import embedded_folder, masked_lm_of
from deberta_jax.errors import MissingFileError, UserError
from deberta_jax.mirrors import local_copy

# Beside the weights of a released discriminator, with a generator_config.json.
_GENERATOR_FILE = "pytorch_model.generator.bin"


def model_folder(source: Path, *, generator: bool = False) -> Path:
    """Returns a folder that `load_pretrained` reads: `source` itself, or its conversion (see `convert.cache`).

    Args:
      source: a folder of ours or of PyTorch files, a hub name, or the name of an embedded model.
      generator: of PyTorch files or an embedded model that are a pair for replaced token detection, take the generator.

    Raises:
      UserError: as `convert.cache.local_model`.
    """
    from deberta_jax.checkpoint import holds_model  # here, because `prepare` does not need JAX

    if (embedded := embedded_folder(masked_lm_of(str(source)) if generator else source)) is not None:
        return embedded
    source = local_copy(source)
    if holds_model(source):
        return source
    from ..convert.cache import local_model

    if generator:
        with contextlib.suppress(MissingFileError):  # no pair; or no such model at all, which is raised below
            return local_model(source, filename=_GENERATOR_FILE)
    return local_model(source)


def tokenizer_folder(source: Path) -> Path:
    """Returns a folder that `Tokenizer.from_folder` reads: `source` itself, an embedded model's, or a download's.

    Raises:
      UserError: as `convert.from_pytorch.find_tokenizer_folder`.
    """
    source = local_copy(source)
    if source.is_dir():
        return source
    if (embedded := embedded_folder(source)) is not None:
        return embedded
    from ..convert.from_pytorch import find_tokenizer_folder

    return find_tokenizer_folder(source)


def check_not_overwritten(sources: Iterable[str | Path | None], output: Path, names: Sequence[str]) -> None:
    """Raises if a run would write its models over those that it starts from.

    Args:
      sources: the models to start from, as the user named them; None and hub names are ignored.
      output: the folder of the run.
      names: the folders of models that the run writes in `output`.

    Raises:
      UserError: a source is one of these folders or inside it, also through links.
    """
    written = [output / name for name in names]
    for source in (Path(source) for source in sources if source is not None):
        if not source.is_dir():
            continue
        for folder in written:
            same = folder.exists() and folder.samefile(source)
            if same or source.resolve().is_relative_to(folder.resolve()):
                raise UserError(
                    f"the run would write its model over the one it starts from, {source}; choose another --output, or "
                    "copy the model first"
                )
