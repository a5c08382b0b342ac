"""The programs that are compared, and where they are installed."""

import dataclasses
import importlib.util

GOLDEN = "golden"
OURS = "ours"  # ours, or ours-IMPLEMENTATION where one was chosen
WARM = "warm"  # a second process of ours, with its compile cache

NEEDS_GPU = "needs an NVIDIA GPU, so the dry run leaves it out"


@dataclasses.dataclass(frozen=True)
class Peer:
    """A PyTorch program.

    Attributes:
      label: its name in tables.
      packages: modules that it needs, by the arguments of `pip install`.
      notes: how its work differs from ours.
    """

    label: str
    packages: dict[str, str]
    needs_gpu: bool
    notes: str = ""


_PYTORCH = {"torch": "torch", "transformers": "'transformers>=5,<6'"}

PEERS = {
    "transformers": Peer("transformers (eager)", _PYTORCH, needs_gpu=False),
    "flashdeberta": Peer(
        "FlashDeBERTa",
        {**_PYTORCH, "triton": "triton", "flashdeberta": "--no-deps flashdeberta==0.0.8", "einops": "einops"},
        needs_gpu=True,
        notes="has no dropout of attention probabilities",
    ),
    "disentangled-flash": Peer(
        "DisentangledFlash",
        {**_PYTORCH, "triton": "triton", "disentangled_flash": "--no-deps disentangled-flash==1.1.1"},
        needs_gpu=True,
    ),
}


def label(program: str) -> str:
    """Returns the name of a program in tables."""
    if program in PEERS:
        return PEERS[program].label
    _, _, implementation = program.partition("-")
    return f"deberta-jax ({implementation})" if implementation else "deberta-jax"


def missing(program: str, *, dry_run: bool) -> str:
    """Returns why a program cannot run here, or an empty text."""
    if dry_run and program.endswith("-pallas"):
        return NEEDS_GPU
    if program not in PEERS:
        return ""
    peer = PEERS[program]
    if peer.needs_gpu and dry_run:
        return NEEDS_GPU
    absent = {name: arguments for name, arguments in peer.packages.items() if importlib.util.find_spec(name) is None}
    if not absent:
        return ""
    return f"{', '.join(absent)} not installed: " + " && ".join(f"pip install {text}" for text in absent.values())
