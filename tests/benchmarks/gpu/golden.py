"""Runs the tests of golden cases on the device, in float32 and without TF32."""

import functools
from collections.abc import Callable

import jax

from ...deberta_jax import test_encoder, test_heads, test_positions, test_rtd, test_sift
from ...support import golden_cases
from ...train.engine import test_optimizer
from .cases import Case, Result

# One of each kind, for a dry run.
FEW = ("encoder_v3", "head_seqcls", "mlm_emd", "rtd_gdes_joint", "sift_perturbation", "xadam_plain", "buckets")

TOLERANCE = 1e-4  # that of the tests on a CPU is smaller for some arrays


def golden_checks() -> dict[str, Callable[[], object]]:
    """Returns functions that raise if a golden case is not met, by the name of the case."""
    encoder = test_encoder.test_golden_hidden_states_attentions_and_gradients
    joint = test_rtd.test_joint_losses_and_gradients_equal_golden
    heads = {
        "head_regression": test_heads.test_regression_equals_golden,
        "head_multichoice": test_heads.test_multiple_choice_equals_golden,
        "head_ner": test_heads.test_microsofts_ner_head_equals_golden,
        "head_rtd": test_heads.test_replaced_token_head_equals_golden,
    }
    of_name = {
        **dict.fromkeys(test_encoder.CASES, encoder),
        **dict.fromkeys(("head_seqcls", "head_seqcls_soft"), test_heads.test_sequence_classification_equals_golden),
        **dict.fromkeys(("mlm_emd", "mlm_bert"), test_heads.test_masked_lm_equals_golden),
        **dict.fromkeys(("rtd_es", "rtd_nes", "rtd_gdes_joint"), joint),
    }
    sift, schedules = golden_cases.load("sift"), golden_cases.load("lr_schedules")
    return {
        **{name: functools.partial(check, name) for name, check in of_name.items()},
        **heads,
        "rtd_step": test_rtd.test_three_decoupled_steps_equal_golden_losses_norms_and_weights,
        "sift": functools.partial(test_sift.test_losses_and_gradients_equal_golden, sift),
        "sift_kl": functools.partial(test_sift.test_losses_equal_golden, sift, "kl"),
        "sift_mse": functools.partial(test_sift.test_losses_equal_golden, sift, "mse"),
        "sift_perturbation": functools.partial(test_sift.test_perturbation_equals_golden, sift, "symmetric_kl"),
        "xadam_plain": functools.partial(test_optimizer.test_updates_and_moments_equal_xadam, "plain"),
        "xadam": functools.partial(test_optimizer.test_updates_and_moments_equal_xadam, "clip_schedule"),
        "lr_schedules": lambda: [
            test_optimizer.test_schedules_equal_the_official_ones(name.removeprefix("outputs/"))
            for name in schedules.group("outputs/")
        ],
        "buckets": lambda: [
            test_positions.test_buckets_equal_official_buckets(*sizes) for sizes in ((256, 512), (128, 512), (16, 64))
        ],
    }


def measure_golden(case: Case) -> Result:
    """Returns a failure if the case is not met.

    The precision is set for the process, because a context manager would set it for one thread.
    """
    jax.config.update("jax_default_matmul_precision", "highest")
    golden_cases.allow(TOLERANCE)
    try:
        golden_checks()[case.size]()
    except AssertionError as error:
        return Result("golden", str(case), failure=" ".join(str(error).split())[:200] or "differs")
    return Result("golden", str(case))
