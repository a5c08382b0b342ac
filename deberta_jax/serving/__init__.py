"""A model as a program of its own: traced and exported by `program`, and run by `load`, which needs jax alone."""
