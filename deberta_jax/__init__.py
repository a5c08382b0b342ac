"""DeBERTa for JAX: models as Flax modules, pre-training by replaced token detection, exact PyTorch conversion."""

import importlib.metadata

from .checkpoint import load_pretrained, save_pretrained
from .config import DebertaConfig
from .errors import UserError
from .models import (
    Deberta,
    DebertaForMaskedLM,
    DebertaForMultipleChoice,
    DebertaForQuestionAnswering,
    DebertaForReplacedTokenDetection,
    DebertaForSequenceClassification,
    DebertaForTokenClassification,
)
from .outputs import EncoderOutput, HeadOutput, SpanOutput
from .rtd import RTDConfig
from .sharding import make_mesh
from .tokenizers.tokenizer import Tokenizer

try:
    __version__ = importlib.metadata.version("deberta-jax")
except importlib.metadata.PackageNotFoundError:  # a copy of the folder that was never installed
    __version__ = "unknown"

__all__ = [
    "Deberta",
    "DebertaConfig",
    "DebertaForMaskedLM",
    "DebertaForMultipleChoice",
    "DebertaForQuestionAnswering",
    "DebertaForReplacedTokenDetection",
    "DebertaForSequenceClassification",
    "DebertaForTokenClassification",
    "EncoderOutput",
    "HeadOutput",
    "RTDConfig",
    "SpanOutput",
    "Tokenizer",
    "UserError",
    "__version__",
    "load_pretrained",
    "make_mesh",
    "save_pretrained",
]
