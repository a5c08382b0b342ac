"""Trains a SentencePiece model in a separate process: a script that `train_tokenizer` runs.

Training is C++ code that reacts to no signal for minutes, and that ends the process for some faults. The caller can end
this process at any moment. Arguments of the trainer are the first argument, as JSON. Each line of standard input is a
training line, and an empty line ends them. The model goes to standard output, or the message of an error.
"""

import ctypes
import io
import json
import signal
import sys
from collections.abc import Iterator

import sentencepiece

FAILED = 3  # exit code after an error of SentencePiece
_SET_PARENT_DEATH_SIGNAL = 1  # of prctl


def main() -> int:
    if sys.platform == "linux":  # elsewhere this process ends its work if the caller is killed
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(), model_writer=model, **json.loads(sys.argv[1])
        )
    except (RuntimeError, SystemError) as error:
        sys.stdout.buffer.write(str(error).encode())
        return FAILED
    sys.stdout.buffer.write(model.getvalue())
    return 0


def _lines() -> Iterator[str]:
    for line in sys.stdin.buffer:
        if line == b"\n":
            return
        yield line[:-1].decode()
    sys.exit("the caller has ended")


if __name__ == "__main__":
    sys.exit(main())
