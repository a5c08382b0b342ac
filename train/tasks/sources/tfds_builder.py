"""Sets of tensorflow_datasets, downloaded and prepared without TensorFlow."""

import dataclasses
import functools
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from deberta_jax.errors import UserError

from .published import PublishedTask


def prepared_builder(
    name: str, *, given: str, known: PublishedTask | None, data_dir: Path | None, manual_dir: Path | None
) -> Any:
    """The builder of a prepared set; prepares it as ArrayRecord, the format that needs no TensorFlow to read.

    Args:
      name: in tensorflow_datasets, such as glue/mnli or glue/mnli:2.0.0.
      given: what errors call it.
      known: says which files to download by hand.

    Raises:
      ValueError: there is no such set, or it cannot be downloaded and prepared; one line with what to do.
    """
    import tensorflow_datasets as tfds
    import tensorflow_datasets.text  # registers GLUE and other older sets, which the package does lazily

    _do_without_tensorflow()
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except ValueError as error:  # its message lists every set there is
        reason = str(error).partition("\n")[0]
        if "File format is already set" in reason:
            reason = "was prepared as TFRecord, which only TensorFlow reads; give another data_dir"
        raise UserError(f"{given}: {reason} (tensorflow_datasets {tfds.__version__})") from None
    downloads = Path(builder.data_dir_root) / "downloads"
    manual = Path(manual_dir or downloads / "manual")
    config = tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False)
    try:
        if known and known.unchecked_url and (manual / known.files[0]).is_file():
            _take_by_hand(builder, known.unchecked_url, manual / known.files[0])
        builder.download_and_prepare(download_dir=downloads, download_config=config)
    except Exception as error:  # builders raise whatever their downloads and parsers do
        files = ", ".join(known.files) if known else "its files"
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"{given} could not be downloaded and prepared in {builder.data_dir_root} ({reason:.300}); "
            f"without internet, put {files} into {manual} or give manual_dir"
        ) from error
    return builder


@functools.cache
def _do_without_tensorflow() -> None:
    """Gives tensorflow_datasets what it takes from TensorFlow on the way to a prepared set: files to unpack archives
    into, and the names of dtypes, for SuperGLUE and for lists of lists as RACE has them. NumPy's do as well."""
    if importlib.util.find_spec("tensorflow"):
        return
    from tensorflow_datasets.core.download import extractor
    from tensorflow_datasets.core.features import feature
    from tensorflow_datasets.text import super_glue

    files = SimpleNamespace(gfile=SimpleNamespace(GFile=open))
    setattr(extractor, "tf", SimpleNamespace(compat=SimpleNamespace(as_text=str), io=files))  # noqa: B010
    setattr(feature, "tf", SimpleNamespace(dtypes=SimpleNamespace(as_dtype=np.dtype)))  # noqa: B010
    setattr(super_glue, "tf", SimpleNamespace(int32=np.int32))  # noqa: B010 - the modules' own names for it


def _take_by_hand(builder: Any, url: str, path: Path) -> None:
    """Makes a file downloaded by hand known to a builder that has no checksums, and so would not look for it."""
    from tensorflow_datasets.core.download import checksums

    info = dataclasses.replace(checksums.compute_url_info(path), filename=path.name)
    type(builder).url_infos = {url: info}
