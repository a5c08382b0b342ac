"""Downloads and prepares sets of tensorflow_datasets without TensorFlow."""

import dataclasses
import functools
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from deberta_jax.errors import UserError

from .published import PublishedTask


def prepare_builder(
    name: str, *, given: str, known: PublishedTask | None, data_dir: Path | None, manual_dir: Path | None
) -> Any:
    """Returns the builder of a set, which is prepared as ArrayRecord, the format that can be read without TensorFlow.

    Args:
      name: the name in tensorflow_datasets, such as glue/mnli or glue/mnli:2.0.0.
      given: the source as the user wrote it, for errors.
      known: the entry in the table of published sets, which lists the files to download by hand.
      data_dir: the folder of prepared sets (default: that of tensorflow_datasets).
      manual_dir: the folder of files that were downloaded by hand (default: `downloads/manual` in `data_dir`).

    Raises:
      UserError: if there is no such set, or it cannot be downloaded and prepared.
    """
    import tensorflow_datasets as tfds
    import tensorflow_datasets.text  # registers GLUE and other older sets; the package itself does so lazily

    replace_tensorflow()
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    # tensorflow_datasets raises ValueError for an unknown name, AssertionError for an unknown version and whatever its
    # JSON parsers raise for a damaged folder.
    except Exception as error:
        reason = str(error).partition("\n")[0]  # the other lines list all sets
        if "File format is already set" in reason or "does not match the file formats" in reason:
            reason = "was prepared as TFRecord, which only TensorFlow reads; give another data_dir"
        raise UserError(f"{given}: {reason} (tensorflow_datasets {tfds.__version__})") from error
    downloads = Path(builder.data_dir_root) / "downloads"
    manual = Path(manual_dir or downloads / "manual")
    # Without try_download_gcs=False the package looks for a prepared set on Google Cloud, which is TFRecord.
    config = tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False)
    try:
        if known and known.unchecked_url and (manual / known.files[0]).is_file():
            _register_manual_file(builder, known.unchecked_url, manual / known.files[0])
        builder.download_and_prepare(download_dir=downloads, download_config=config)
    except Exception as error:  # a builder raises whatever its downloads and its parsers raise
        files = ", ".join(known.files) if known else "its files"
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"{given} could not be downloaded and prepared in {builder.data_dir_root} ({reason:.300}); "
            f"without internet access, put {files} into {manual} or give manual_dir"
        ) from error
    return builder


@functools.cache
def replace_tensorflow() -> None:
    """Gives tensorflow_datasets substitutes for TensorFlow, unless TensorFlow is installed.

    The package can prepare and read ArrayRecord without TensorFlow, with three exceptions. In each of these modules
    the name `tf` is a lazy import that fails at its first use, so the name is replaced in the module itself:

    - `extractor` unpacks archives through `tf.io.gfile.GFile`. The archives are local files, so `open` is equivalent.
    - `feature` converts the dtypes of lists of lists, which RACE has, through `tf.dtypes.as_dtype`. The serializer
      converts the result back to NumPy's dtypes, so `np.dtype` is equivalent.
    - `super_glue` declares features with `tf.int32`, which the package converts to NumPy's int32 anyway.
    """
    if importlib.util.find_spec("tensorflow"):
        return
    from tensorflow_datasets.core.download import extractor
    from tensorflow_datasets.core.features import feature
    from tensorflow_datasets.text import super_glue

    substitutes = {
        extractor: SimpleNamespace(
            compat=SimpleNamespace(as_text=str), io=SimpleNamespace(gfile=SimpleNamespace(GFile=open))
        ),
        feature: SimpleNamespace(dtypes=SimpleNamespace(as_dtype=np.dtype)),
        super_glue: SimpleNamespace(int32=np.int32),
    }
    for module, substitute in substitutes.items():
        setattr(module, "tf", substitute)  # noqa: B010 - an assignment to module.tf fails the type check


def _register_manual_file(builder: Any, url: str, path: Path) -> None:
    """Adds the checksum of a file that was downloaded by hand to a builder without checksums.

    The package looks for a file in the manual folder only if it knows the file's checksum.
    """
    from tensorflow_datasets.core.download import checksums

    info = dataclasses.replace(checksums.compute_url_info(path), filename=path.name)
    type(builder).url_infos = {url: info}
