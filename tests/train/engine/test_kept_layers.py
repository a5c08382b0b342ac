"""How many layers keep their attention probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import DebertaConfig
from deberta_jax.kernels import kept_bytes
from deberta_jax.sharding import make_mesh
from deberta_jax.train.engine import kept_layers
from deberta_jax.train.engine.kept_layers import FittingStep, KeptLayers, fit_kept_layers, training_step

BASE = DebertaConfig.named("deberta-v3-base")


@pytest.mark.parametrize(
    ("memory", "refused_from", "layers", "compiled"),
    [
        (220, 999, 12, [12]),  # everything fits
        (150, 999, 5, [12, 0, 5]),  # the compiler accepts all layers, but they need more than there is
        (150, 151, 5, [12, 0, 5]),  # the compiler refuses all layers
        (109, 151, 0, [12, 0]),  # no room for one layer
        (150, 120, 0, [12, 0, 5]),  # the estimate for 5 layers was too low
        (90, 91, None, [12, 0]),  # the step does not fit without any
    ],
)
def test_as_many_layers_as_fit(memory: int, refused_from: int, layers: int | None, compiled: list[int]) -> None:
    """A step that needs 100 bytes, and 10 for each kept layer."""
    attempts = []

    def compile_with(layers: int) -> int | None:
        attempts.append(layers)
        needed = 100 + 10 * layers
        return None if needed >= refused_from else needed

    fitted = fit_kept_layers(compile_with, lambda needed: needed, KeptLayers(12, 10), memory)
    assert attempts == compiled
    assert fitted.program == (None if layers is None else 100 + 10 * layers)
    assert fitted.kept_layers == (layers or 0)


def test_rows_that_keep_nothing_are_compiled_once() -> None:
    attempts = []
    fitted = fit_kept_layers(lambda layers: attempts.append(layers) or "step", lambda _: 1, KeptLayers(12, 0), 10)
    assert (attempts, fitted.program, fitted.kept_layers) == ([0], "step", 0)


def test_bytes_of_a_layer_on_one_device() -> None:
    mesh = make_mesh(data=2, tensor=2, devices=jax.devices()[:4])

    def of_batch(models, shape, **options) -> KeptLayers:
        return KeptLayers.of_batch(models, shape, mesh, accumulation=4, dtype=jnp.bfloat16, **options)

    row = kept_bytes(BASE, 1, 512, dtype=jnp.bfloat16, device_kind="cpu")
    assert of_batch([BASE], (64, 512)) == KeptLayers(12, 64 // (2 * 4) * row // 2)
    assert of_batch([BASE], (16, 4, 512)) == of_batch([BASE], (64, 512))  # of multiple choice
    small = BASE.replace(num_hidden_layers=6)
    assert of_batch([small, BASE], (64, 512)) == of_batch([BASE], (64, 512))  # one after the other
    both = of_batch([small, BASE], (64, 512), together=True)
    assert both.layer_bytes == 2 * of_batch([BASE], (64, 512)).layer_bytes
    assert of_batch([BASE], (64, 1024)).layer_bytes == 0


def test_each_shape_is_compiled_once_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_layers, "_needed_bytes", lambda program: 10)
    monkeypatch.setattr(kept_layers, "_device_memory", lambda: 100)
    built, lines = [], []

    def build(layers: int):
        built.append(layers)
        return jax.jit(lambda state, batch, frozen: (state + layers * frozen, batch["input_ids"].sum()))

    step = FittingStep(build, lambda shape: KeptLayers(3, 8 if shape[-1] < 16 else 0), lines.append)
    for length in (8, 8, 16, 8):
        state, total = step(jnp.float32(1), {"input_ids": jnp.ones((2, length))}, frozen=jnp.float32(2))
        assert (state, total) == (1 + 2 * (3 if length == 8 else 0), 2 * length)
    assert built == [3, 0]
    assert lines == [
        "3 of 3 layers keep their attention probabilities for batches of 2 x 8 tokens: all fit into memory, 0 MiB each",
        "0 of 3 layers keep their attention probabilities for batches of 2 x 16 tokens: the kernels keep nothing for "
        "these rows",
    ]


def test_a_step_that_the_compiler_refuses_is_compiled_without_kept_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_layers, "_needed_bytes", lambda program: 10)
    monkeypatch.setattr(kept_layers, "_device_memory", lambda: 10)

    class Refused:
        def lower(self, *arguments):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm.")

    class Broken:
        def lower(self, *arguments):
            raise jax.errors.JaxRuntimeError("INTERNAL: Mosaic failed to compile TPU kernel")

    plain = jax.jit(lambda state, batch: state)
    batch = {"input_ids": jnp.ones((2, 8))}
    step = FittingStep(lambda layers: Refused() if layers else plain, lambda shape: KeptLayers(3, 8), lambda line: None)
    np.testing.assert_array_equal(step(jnp.ones(2), batch), np.ones(2))
    broken = FittingStep(lambda layers: Broken(), lambda shape: KeptLayers(3, 8), lambda line: None)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        broken(jnp.ones(2), batch)


@pytest.mark.parametrize(("setting", "built"), [(None, 0), (0, 0), (4, 4)])
def test_without_a_tpu_only_the_setting_keeps_layers(setting: int | None, built: int) -> None:
    lines: list[str] = []
    step = training_step(
        lambda layers: layers,
        lambda shape: KeptLayers(12, 8),
        kept_layers=setting,
        mesh=make_mesh(devices=jax.devices()[:1]),
        log=lines.append,
    )
    assert step == built
    assert lines == (["4 layers keep their attention probabilities where the kernels can (kept_layers)"] * (built > 0))
