"""The files of the model "deberta-v3-tiny", which `deberta_jax.embedded` finds by name. README.md is its card."""
