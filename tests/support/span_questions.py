"""Random questions about contexts with many kinds of characters."""

import random

from deberta_jax.train.tasks.spans.questions import Answer, SpanQuestion

SYLLABLES = [
    "a",
    "the",
    "happy",
    " ",
    "  ",
    "\t",
    "was",
    "é",
    "e\u0301",
    "日本",
    "😀",
    "👩‍👩‍👧",
    "ﬁ",
    "…",
    "\u00a0",
    "x;y",
    "\uff26",
]
SETTINGS = {"max_length": 40, "max_question_length": 10, "doc_stride": 12, "max_answer_length": 14}


def random_question(seed, *, answered=True):
    """Returns a question about a context of a few windows, with an answer that may begin or end inside a token."""
    rng = random.Random(seed)
    context = "".join(rng.choice(SYLLABLES) + rng.choice(["", " "]) for _ in range(rng.randint(3, 60)))
    while answered:
        start, size = rng.randrange(len(context)), rng.randint(1, 12)
        text = context[start : start + size]
        if text == text.strip() and text:
            return SpanQuestion(str(seed), "was the man happy", context, (Answer(text, start),))
    return SpanQuestion(str(seed), "was the man happy", context, ())
