"""Low-rank adaptation (LoRA, Hu et al. 2021): a product of two thin matrices is trained beside a frozen kernel.

    y = x (W + alpha / rank · A B) + b        A [inputs, rank], B [rank, outputs], B = 0 at the start

qwix adds the adapters to a model. In the parameters they stand beside the kernel, as `kernel_lora_a` and
`kernel_lora_b`; merging them into the kernel needs no other package.
"""

import dataclasses
import re
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from . import layers
from .config import DebertaConfig
from .errors import MissingPackageError, UserError
from .sharding import constrain
from .terminal import list_names, shown_number

Target = Literal[
    "query_proj",
    "key_proj",
    "value_proj",
    "pos_key_proj",
    "pos_query_proj",
    "attention/output",
    "feed_forward/intermediate",
    "feed_forward/output",
]
TARGETS: tuple[Target, ...] = get_args(Target)
ADAPTER_NAMES = ("kernel_lora_a", "kernel_lora_b")
_LARGEST_RANK = 4096
# U(±1 / sqrt(inputs)) as in PEFT, so that learning rates found with it carry over. qwix's default is sqrt(6) larger.
_initial_a = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adaptation (LoRA), disabled by default: trains thin matrices beside frozen projections, and the head"""

    rank: int = 0
    """rank of the adapters, such as 8 (0: none, all parameters are trained); they need a learning rate about ten times
    as high"""
    alpha: float = 16.0
    """scale of the adapters, which are multiplied by alpha / rank"""
    dropout: float = 0.0
    """dropout rate of what the adapters read"""
    targets: tuple[Target, ...] = ("query_proj", "value_proj")
    """projections of every layer that get an adapter"""

    def __post_init__(self) -> None:
        if not 0 <= self.rank <= _LARGEST_RANK:
            raise UserError(f"the rank of LoRA is {shown_number(self.rank)}; it must be 0 to {_LARGEST_RANK}")
        if not 0 < self.alpha <= float(np.finfo(np.float32).max):
            raise UserError(f"the alpha of LoRA is {self.alpha}; it must be above 0 and finite in 32 bits")
        if not 0 <= self.dropout < 1:
            raise UserError(f"the dropout of LoRA is {self.dropout}; it must be at least 0 and below 1")
        unknown = [name for name in self.targets if name not in TARGETS]
        if unknown or not self.targets or len(set(self.targets)) < len(self.targets):
            given = list_names(unknown) if unknown else list_names(self.targets)
            raise UserError(f"the targets of LoRA are {given}; give each once, of: {', '.join(TARGETS)}")
        changed = [field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]
        if changed and not self.rank:
            raise UserError(f"{list_names(changed)} of LoRA needs a rank; give --lora.rank as well, such as 8")

    @property
    def scale(self) -> float:
        """The factor of the product of the adapters."""
        return self.alpha / self.rank


# -------------------------------------------------------------------------------------------- the adapted model


def adapted_model(model: nn.Module, lora: LoraConfig, *, train: bool, first_layer: int = 0) -> nn.Module:
    """Returns a model that reads adapters beside the kernels of the target projections.

    Everything else of the model is the same. `init` gives the adapters as well.

        adapted_model(DebertaForSequenceClassification(config), LoraConfig(rank=8), train=False)

    Args:
      model: any model of this library that has an encoder under `deberta`.
      lora: the adapters, which fit the model (`check_targets`).
      train: whether the adapters have dropout, which needs a "dropout" rng.
      first_layer: the first layer that has adapters.

    Raises:
      MissingPackageError: qwix is not installed.
    """
    qwix = import_qwix()
    config: DebertaConfig = model.config  # type: ignore[attr-defined]  # of every model

    numbers = "|".join(str(number) for number in range(first_layer, config.num_hidden_layers)) or "none"
    targets = "|".join(map(_path, lora.targets))
    rule = qwix.LoraRule(
        module_path=rf"deberta/encoder/layer_({numbers})/({targets})",
        rank=lora.rank,
        alpha=lora.alpha,
        dropout=lora.dropout if train else 0.0,
        lora_a_initializer=_initial_a,
    )

    class Adapters(qwix.LoraProvider):
        """Tells a dense layer, which refuses parameters that it does not read, that its adapters are read."""

        def get_intercept_map(self) -> dict[str, Any]:
            def refuse_unread(module: nn.Module, *own: str) -> None:
                kernel = module.get_variable("params", "kernel")
                adapts = re.fullmatch(rule.module_path, "/".join(module.path)) is not None
                if adapts and not isinstance(kernel, jax.Array):  # qwix would not find it among the parameters
                    raise TypeError("an adapted model needs arrays of JAX as parameters; call it under jax.jit")
                layers.refuse_unread(module, *own, *(ADAPTER_NAMES if adapts else ()))

            return super().get_intercept_map() | {"deberta_jax.layers.refuse_unread": refuse_unread}

    return qwix.apply_lora_to_model(model, Adapters([rule]))


def import_qwix() -> Any:
    """Returns the module qwix.

    Raises:
      MissingPackageError: it is not installed.
    """
    try:
        import qwix
    except ImportError:
        raise MissingPackageError(
            "LoRA and int8 weights need the package qwix: pip install 'deberta-jax[adapt]'"
        ) from None
    return qwix


def check_targets(params: dict[str, Any], lora: LoraConfig) -> None:
    """Raises if a model does not have a target, or one that is too small for the rank.

    qwix tells a kernel from its adapters by the shape, so an adapter must not be as large as the kernel.

    Args:
      params: nested dict of the model's parameters, or of their shapes, with the encoder under `deberta`.
      lora: the adapters.

    Raises:
      UserError: a target is missing, or the rank is not below both sizes of its kernel.
    """
    layer = params["deberta"]["encoder"]["layer_0"]
    parts = {_path(name): name for name in TARGETS}
    kernels = {
        parts[f"{block}/{name}"]: projection["kernel"]
        for block, projections in layer.items()
        for name, projection in projections.items()
        if f"{block}/{name}" in parts
    }
    for name in lora.targets:
        if name not in kernels:
            raise UserError(
                f"the model has no projection {name} for --lora.targets; it has "
                f"{', '.join(name for name in TARGETS if name in kernels)}"
            )
        if lora.rank >= min(kernels[name].shape):
            raise UserError(
                f"the rank of LoRA is {lora.rank}, but the smaller side of {name} has only "
                f"{min(kernels[name].shape)} numbers; give a smaller --lora.rank"
            )


def _path(target: Target) -> str:
    """Returns the path of a target inside a layer."""
    return target if "/" in target else f"attention/{target}"


# -------------------------------------------------------------------------------------------- the parameters


def adapters_of(params: Any) -> Any:
    """Returns the adapters among nested parameters, at their paths."""
    if not isinstance(params, dict):
        return None
    found = {name: leaf if name in ADAPTER_NAMES else adapters_of(leaf) for name, leaf in params.items()}
    return {name: part for name, part in found.items() if part is not None} or None


def joined(first: Any, second: Any) -> Any:
    """Returns one tree of two nested dicts of arrays; where both have an array, the second one's."""
    if not isinstance(first, dict) or not isinstance(second, dict):
        return second
    shared = {name: joined(first[name], part) if name in first else part for name, part in second.items()}
    return {**first, **shared}


def merged(params: Any, scale: float) -> Any:
    """Returns parameters in which the adapters are added to their kernels; the plain model reads them.

    The sums are computed in float32 and placed like the parameters on the mesh in use.
    """
    return constrain(_merged(params, scale), moments=False)


def _merged(params: Any, scale: float) -> Any:
    if not isinstance(params, dict):
        return params
    parts = {name: _merged(part, scale) for name, part in params.items() if name not in ADAPTER_NAMES}
    if ADAPTER_NAMES[0] in params:
        first, second = (params[name] for name in ADAPTER_NAMES)
        parts["kernel"] = _add_product(params["kernel"], first, second, scale)
    return parts


@jax.jit
def _add_product(
    kernel: Float[Array | np.ndarray, "inputs outputs"],
    first: Float[Array | np.ndarray, "inputs rank"],
    second: Float[Array | np.ndarray, "rank outputs"],
    scale: Float[Array, ""] | float,
) -> Float[Array, "inputs outputs"]:
    return jnp.asarray(kernel) + scale * jnp.matmul(first, second, precision=jax.lax.Precision.HIGHEST)
