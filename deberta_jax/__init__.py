"""DeBERTa for JAX: models as Flax modules, pre-training by replaced token detection, exact PyTorch conversion."""

from .checkpoint import load_pretrained, save_pretrained
from .config import DebertaConfig
from .models import (
    Deberta,
    DebertaForMaskedLM,
    DebertaForMultipleChoice,
    DebertaForQuestionAnswering,
    DebertaForReplacedTokenDetection,
    DebertaForSequenceClassification,
    DebertaForTokenClassification,
)
from .rtd import RTDConfig
from .tokenizers.tokenizer import Tokenizer

__all__ = [
    "Deberta",
    "DebertaConfig",
    "DebertaForMaskedLM",
    "DebertaForMultipleChoice",
    "DebertaForQuestionAnswering",
    "DebertaForReplacedTokenDetection",
    "DebertaForSequenceClassification",
    "DebertaForTokenClassification",
    "RTDConfig",
    "Tokenizer",
    "load_pretrained",
    "save_pretrained",
]
