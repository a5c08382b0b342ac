"""What the models return."""

from typing import NamedTuple

import flax.struct
from jaxtyping import Array, Float

# Multiple choice has an axis for the choices, *C.
HiddenStates = tuple[Float[Array, "B *C S D"], ...]  # the embeddings, then the output of every layer
Attentions = tuple[Float[Array, "B *C N S S"], ...]  # the probabilities of every layer


@flax.struct.dataclass
class EncoderOutput:
    """The encoder's output; hidden_states and attentions are None unless requested."""

    last_hidden_state: Float[Array, "B S D"]
    hidden_states: HiddenStates | None = None
    attentions: Attentions | None = None


@flax.struct.dataclass
class HeadOutput:
    """The output of a model with a head: float32 logits, whose shape depends on the model, and what was requested."""

    logits: Float[Array, "..."]
    hidden_states: HiddenStates | None = None
    attentions: Attentions | None = None


@flax.struct.dataclass
class SpanOutput:
    """The output of question answering: float32 logits of the first and the last token, and what was requested."""

    start_logits: Float[Array, "B S"]
    end_logits: Float[Array, "B S"]
    hidden_states: HiddenStates | None = None
    attentions: Attentions | None = None


class DecoderOutput(NamedTuple):
    """The input of the masked LM head, and what was requested of the encoder."""

    decoded: Float[Array, "B M D"]
    hidden_states: HiddenStates | None
    attentions: Attentions | None
