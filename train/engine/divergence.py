"""Divergence: numbers that are not finite end a run, before anything of them is saved."""

from deberta_jax.errors import UserError


class TrainingError(UserError):
    """Training diverged: a loss, a gradient, a parameter or a prediction is not finite; the message says which.

    All processes of a run raise it at the same point.
    """
