"""`deberta-jax pretrain`, with a record of the rows that it trains on, and with faults that a test switches on.

    python -m tests.support.recorded_pretrain RECORDS OPTIONS...

Process I appends a line to RECORDS/rows-I.jsonl for every batch: the step, the numbers of the rows in the stream, and a
fingerprint of the tokens of each row. These files in RECORDS switch on a fault for as long as they exist:

* `stuck-I`: the next batch of process I does not arrive, as if its storage hung.
* `slow`: every batch arrives two seconds late.
* `hung-log`: the thread that writes TensorBoard's file blocks in a system call, for ever, as on a network file system
  whose server is gone. The file `log-hangs` then appears.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import jax

from deberta_jax.__main__ import main
from deberta_jax.train import pretrain_setup
from deberta_jax.train.data.batches import Batch, TrainingBatches
from deberta_jax.train.reporting import reporter
from deberta_jax.train.reporting.tensorboard import EventFile, Scalars

from .recorded_rows import fingerprints

RECORDS = Path(sys.argv[1])
_SLOW_SECONDS = 2.0


class RecordedBatches(TrainingBatches):
    """Records every batch with the step that takes it."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._global_batch = settings["global_batch"]

    def __next__(self) -> Batch:
        while (RECORDS / f"stuck-{jax.process_index()}").exists():
            time.sleep(0.1)
        if (RECORDS / "slow").exists():
            time.sleep(_SLOW_SECONDS)
        step = self.get_state()["global_next_index"] // self._global_batch + 1
        batch = super().__next__()
        record = {"step": step, "rows": batch["row"].tolist(), "tokens": fingerprints(batch)}
        with open(RECORDS / f"rows-{jax.process_index()}.jsonl", "a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")
        return batch


class HangingEventFile(EventFile):
    """TensorBoard's file, whose writer can hang."""

    def write(self, scalars: Scalars) -> None:
        if (RECORDS / "hung-log").exists():
            (RECORDS / "log-hangs").touch()
            _, full_pipe = os.pipe()
            while True:
                os.write(full_pipe, bytes(1 << 20))
        super().write(scalars)


if __name__ == "__main__":
    pretrain_setup.TrainingBatches = RecordedBatches
    reporter.EventFile = HangingEventFile
    sys.exit(main(["pretrain", *sys.argv[2:]]))
