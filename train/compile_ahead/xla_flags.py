"""The flags of the TPU compiler that tpu_scripts/ sets for training runs, as options for compiling ahead of time.

tpu_scripts/xla_flags.sh has the same table for shells and explains each flag; a test keeps the two equal.
"""

from deberta_jax.errors import UserError

_OVERLAPPED_REDUCTION = {
    "xla_enable_async_all_reduce": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": "true",
    "xla_jf_crs_combiner_threshold_in_bytes": "1048576",
}
XLA_FLAGS: dict[str, dict[str, str]] = {
    "v4": {},
    "v5e": _OVERLAPPED_REDUCTION,
    "v5p": _OVERLAPPED_REDUCTION,
    "v6e": _OVERLAPPED_REDUCTION,
    "tpu7x": {},
}


def parse_flags(text: str) -> dict[str, str]:
    """Parses flags in the syntax of LIBTPU_INIT_ARGS: "--name=value --other=value" -> {name: value, other: value}.

    Raises:
      UserError: a word has another form.
    """
    options = {}
    for word in text.split():
        name, separator, value = word.removeprefix("--").partition("=")
        if not (word.startswith("--") and separator and name):
            raise UserError(f"{word!r} is not a flag of the TPU compiler; give --name=value, separated by spaces")
        options[name] = value
    return options
