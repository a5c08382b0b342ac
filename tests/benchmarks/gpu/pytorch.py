"""Measures a PyTorch program: transformers, or one of the two packages that replace its attention by Triton kernels.

Training uses bfloat16 autocast over float32 weights, and PyTorch's AdamW in its fused form. The forward pass uses
weights in bfloat16 under `torch.inference_mode`.
"""

import copy
import gc
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

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


class Program:
    """One process of a PyTorch program."""

    def __init__(self, work: Work) -> None:
        self.work = work
        if not work.dry_run and not torch.cuda.is_available():
            raise SystemExit("torch has no GPU here: install a build for CUDA")
        self.device = "cpu" if work.dry_run else "cuda"
        self.base = load(work)
        self.parts = {"imports and reading weights": work.since_start()}

    def measure(self, case: Case) -> Result:
        """Returns the result of one case."""
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        measures: dict[str, Callable[[Case], Result]] = {
            "start": self.start,
            "step": self.step,
            "forward": self.forward,
            "reference": self.reference,
            "error": self.error,
        }
        return measures[case.kind](case)

    def start(self, case: Case) -> Result:
        """Measures the time from the start of the process to the end of the first training step."""
        self.training_step(case)()
        self.wait()
        return Result(self.work.program, str(case), seconds=self.work.since_start(), parts=self.parts)

    def step(self, case: Case) -> Result:
        return self.timed(case, self.training_step(case))

    @torch.inference_mode()
    def forward(self, case: Case) -> Result:
        model = self.for_inference(case, torch.bfloat16)
        inputs = self.inputs(case)
        return self.timed(case, lambda: model(**inputs))

    @torch.inference_mode()
    def reference(self, case: Case) -> Result:
        """Writes the encoder's output in float32, without TF32."""
        torch.backends.cuda.matmul.allow_tf32 = False
        start = time.perf_counter()
        hidden = self.for_inference(case, torch.float32).deberta(**self.inputs(case)).last_hidden_state
        np.save(self.work.reference, hidden.cpu().numpy())
        return Result(self.work.program, str(case), seconds=time.perf_counter() - start)

    @torch.inference_mode()
    def error(self, case: Case) -> Result:
        """Compares the encoder's output in bfloat16 with transformers' in float32."""
        hidden = self.for_inference(case, torch.bfloat16).deberta(**self.inputs(case)).last_hidden_state
        mask = batch_of(case, self.base.config.vocab_size)["attention_mask"]
        difference = relative_error(hidden.float().cpu().numpy(), read_reference(self.work), mask)
        return Result(self.work.program, str(case), difference=difference)

    # ---------------------------------------------------------------- parts

    def inputs(self, case: Case) -> dict[str, torch.Tensor]:
        batch = batch_of(case, self.base.config.vocab_size)
        return {
            name: torch.tensor(batch[name], dtype=torch.long, device=self.device)
            for name in ("input_ids", "attention_mask")
        }

    def for_inference(self, case: Case, dtype: torch.dtype) -> Any:
        model = copy.deepcopy(self.base).to(self.device, dtype).eval()
        if self.work.program == "disentangled-flash":
            from disentangled_flash import optimize_deberta

            optimize_deberta(model.deberta, sequence_lengths=[case.shape[1]])
            check_kernels(model)
        return model

    def training_step(self, case: Case) -> Callable[[], None]:
        """Returns a function that runs one training step."""
        model = copy.deepcopy(self.base).to(self.device).train()
        if self.work.program == "disentangled-flash":
            from disentangled_flash import optimize_deberta_training

            optimize_deberta_training(model.deberta, backend="triton")
            check_kernels(model)
        fused = self.device == "cuda"
        adam = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=fused)
        inputs = self.inputs(case)
        labels = torch.tensor(batch_of(case, 10)["labels"], dtype=torch.long, device=self.device)

        def run() -> None:
            adam.zero_grad()
            with torch.autocast(self.device, torch.bfloat16):
                loss = model(**inputs, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            adam.step()

        return run

    def timed(self, case: Case, run: Callable[[], Any]) -> Result:
        milliseconds = time_rounds(run, self.wait, dry_run=self.work.dry_run)
        memory = torch.cuda.max_memory_allocated() if self.device == "cuda" else None
        return Result(self.work.program, str(case), milliseconds=milliseconds, memory=memory)

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def load(work: Work) -> Any:
    """Returns the classifier in float32 on the CPU."""
    if work.program == "flashdeberta":
        from flashdeberta import FlashDebertaV2ForSequenceClassification as Classifier
    else:
        from transformers import DebertaV2ForSequenceClassification as Classifier
    model, loading = Classifier.from_pretrained(work.model, dtype=torch.float32, output_loading_info=True)
    if loading["missing_keys"] or loading["unexpected_keys"]:
        raise SystemExit(f"weights do not match: {loading}")
    return model


def check_kernels(model: Any) -> None:
    """Raises if DisentangledFlash kept the original attention, which it does without a message."""
    backend = getattr(model.deberta.encoder, "backend", "eager")
    if backend != "triton":
        raise RuntimeError(f"its Triton kernels are not in use, but {backend}")
