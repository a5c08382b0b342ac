"""Measures this library: the classifier's forward pass and the training step of `deberta-jax finetune`."""

import functools
import gc
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from deberta_jax import Deberta, DebertaForSequenceClassification
from deberta_jax.convert import load_pytorch
from deberta_jax.sharding import compiler_options
from deberta_jax.train.configs import OptimizerConfig
from deberta_jax.train.engine.optimizer import build_optimizer
from deberta_jax.train.engine.state import TrainState, training_key
from deberta_jax.train.finetune import build_step
from deberta_jax.train.tasks.classification.task import Classification

from ...support.configs import finetune_config
from .cases import (
    CLIP,
    LEARNING_RATE,
    WEIGHT_DECAY,
    Case,
    Result,
    Work,
    batch_of,
    read_reference,
    relative_error,
    time_rounds,
)

LAYERS = 2  # in which gradients are compared
OF_ATTENTION = r"(query|key|value)_proj/kernel|rel_embeddings"


class Program:
    """One process of this library. Programs that it compiled are used again."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.parts = {"imports": work.since_start()}
        if not work.dry_run:
            require_gpu()
        loading = time.perf_counter()
        self.config, self.weights = load_pytorch(work.model)
        self.parts["reading weights"] = time.perf_counter() - loading
        attributes = {"dtype": jnp.bfloat16, "attention_implementation": work.implementation}
        self.encoder = Deberta(self.config, **attributes)
        self.model = DebertaForSequenceClassification(self.config, **attributes)
        self.steps: dict[str, Any] = {}

    def measure(self, case: Case) -> Result:
        """Returns the result of one case."""
        gc.collect()  # of the arrays of a case that failed
        measures: dict[str, Callable[[Case], Result]] = {
            "start": self.start,
            "warm": self.start,
            "step": self.step,
            "forward": self.forward,
            "error": self.error,
            "gradients": self.gradients,
        }
        return measures[case.kind](case)

    def start(self, case: Case) -> Result:
        """Measures the time from the start of the process to the end of the first training step."""
        state, batch = self.training_state(), self.training_batch(case)
        jax.block_until_ready(state)
        before = time.perf_counter()
        step = self.compiled_step(case, state, batch)
        self.parts["tracing and compiling the step"] = time.perf_counter() - before
        jax.block_until_ready(step(state, batch))
        return Result(self.work.program, str(case), seconds=self.work.since_start(), parts=self.parts)

    def step(self, case: Case) -> Result:
        peak_before = allocated_peak()
        state, batch = self.training_state(), self.training_batch(case)
        step = self.compiled_step(case, state, batch)

        def run() -> None:
            nonlocal state
            state, _ = step(state, batch)

        milliseconds = time_rounds(run, lambda: jax.block_until_ready(state), dry_run=self.work.dry_run)
        return self.result(case, milliseconds, step, peak_before)

    def forward(self, case: Case) -> Result:
        peak_before = allocated_peak()
        params = self.placed(jnp.bfloat16)
        batch = batch_of(case, self.config.vocab_size)
        ids, mask = jax.device_put((batch["input_ids"], batch["attention_mask"]))

        @functools.partial(jax.jit, compiler_options=compiler_options())
        def forward(params: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
            return self.model.apply({"params": params}, ids, mask).logits

        program = forward.lower(params, ids, mask).compile()
        logits = program(params, ids, mask)

        def run() -> None:
            nonlocal logits
            logits = program(params, ids, mask)

        milliseconds = time_rounds(run, lambda: jax.block_until_ready(logits), dry_run=self.work.dry_run)
        return self.result(case, milliseconds, program, peak_before)

    def error(self, case: Case) -> Result:
        """Compares the encoder's output in bfloat16 with transformers' in float32."""
        batch = batch_of(case, self.config.vocab_size)
        arguments = batch["input_ids"], batch["attention_mask"]
        run = jax.jit(lambda params, *arguments: self.encoder.apply({"params": params}, *arguments).last_hidden_state)
        hidden = run(self.placed(jnp.bfloat16)["deberta"], *arguments)
        expected = read_reference(self.work)
        difference = relative_error(np.asarray(hidden, np.float32), expected, batch["attention_mask"])
        return Result(self.work.program, str(case), difference=difference)

    def gradients(self, case: Case) -> Result:
        """Compares gradients in bfloat16 with those of plain XLA in float32, with the same dropout masks.

        The difference is the largest of those of the projections of attention and of the table of positions.
        """
        config, weights = self.config.replace(num_hidden_layers=LAYERS), dict(self.weights)
        encoder = weights["deberta"]["encoder"]
        dropped = {f"layer_{number}" for number in range(LAYERS, self.config.num_hidden_layers)}
        kept = {name: part for name, part in encoder.items() if name not in dropped}
        weights["deberta"] = weights["deberta"] | {"encoder": kept}
        batch = batch_of(case, config.vocab_size)

        def found(dtype: Any, implementation: str) -> dict[str, np.ndarray]:
            model = DebertaForSequenceClassification(config, dtype, attention_implementation=implementation)
            rngs = {"dropout": training_key(0)}

            def loss(params: Any) -> jax.Array:
                ids, mask = batch["input_ids"], batch["attention_mask"]
                logits = model.apply({"params": params}, ids, mask, train=True, rngs=rngs).logits
                return optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]).mean()

            arrays = traverse_util.flatten_dict(jax.jit(jax.grad(loss))(weights)["deberta"]["encoder"], sep="/")
            return {name: np.asarray(array) for name, array in arrays.items() if re.search(OF_ATTENTION, name)}

        actual = found(jnp.bfloat16, self.work.implementation)
        with jax.default_matmul_precision("highest"):
            expected = found(jnp.float32, "xla")
        norm = np.linalg.norm
        difference = max(float(norm(actual[name] - expected[name]) / norm(expected[name])) for name in expected)
        return Result(self.work.program, str(case), difference=difference)

    # ---------------------------------------------------------------- parts

    def placed(self, dtype: Any) -> Any:
        """Returns the parameters on the device."""
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), self.weights)

    def training_state(self) -> TrainState:
        """Returns a state with float32 parameters and moments."""
        params = self.placed(jnp.float32)
        return TrainState.create({"model": params}, {"model": self.optimizer().init(params)}, seed=0)

    def training_batch(self, case: Case) -> Any:
        batch = batch_of(case, self.config.vocab_size)
        return jax.device_put({**batch, "token_type_ids": np.zeros_like(batch["input_ids"])})

    def settings(self) -> OptimizerConfig:
        return OptimizerConfig(learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY, max_grad_norm=CLIP)

    def optimizer(self) -> Any:
        return build_optimizer(self.settings(), total_steps=1000)

    def compiled_step(self, case: Case, state: TrainState, batch: Any) -> Any:
        """Returns the compiled training step for the size of a case."""
        if case.size not in self.steps:
            run = finetune_config(optimizer=self.settings())
            step = build_step(self.model, Classification(), self.optimizer(), run, total_steps=1000)
            jitted = jax.jit(step, donate_argnums=0, compiler_options=compiler_options())
            self.steps[case.size] = jitted.lower(state, batch).compile()
        return self.steps[case.size]

    def result(self, case: Case, milliseconds: tuple[float, ...], program: Any, peak_before: int) -> Result:
        """Adds the memory: the allocator's peak if this case raised it, else what the program needs."""
        peak = allocated_peak()
        if peak <= peak_before:
            sizes = program.memory_analysis()
            peak = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
            peak -= sizes.alias_size_in_bytes
        on_cpu = self.work.dry_run
        return Result(self.work.program, str(case), milliseconds=milliseconds, memory=None if on_cpu else peak)


def allocated_peak() -> int:
    """Returns the largest memory in use on the device since the process started, 0 where JAX does not count it."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


def require_gpu() -> None:
    """Ends the process with one line if JAX has no GPU."""
    try:
        jax.devices("cuda")
    except RuntimeError as error:
        advice = "pip install 'jax[cuda12]' or 'jax[cuda13]', whichever the driver supports"
        raise SystemExit(f"JAX has no GPU here ({' '.join(str(error).split())[:120]}); {advice}") from None
