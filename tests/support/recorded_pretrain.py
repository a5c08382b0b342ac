"""`deberta-jax pretrain`, with a record of the rows that it trains on and a data loader that a test can stop.

    python -m tests.support.recorded_pretrain RECORDS OPTIONS...

Process I appends a line to RECORDS/rows-I.jsonl for every batch: the step, the numbers of the rows in the stream, and a
fingerprint of the tokens of each row. While RECORDS/stuck-I exists, the next batch of process I does not arrive, as if
its storage hung.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax

from deberta_jax.__main__ import main
from deberta_jax.train import pretrain_setup
from deberta_jax.train.data.batches import Batch, TrainingBatches

from .recorded_rows import fingerprints

RECORDS = Path(sys.argv[1])


class RecordedBatches(TrainingBatches):
    """Records every batch with the step that takes it."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._global_batch = settings["global_batch"]

    def __next__(self) -> Batch:
        while (RECORDS / f"stuck-{jax.process_index()}").exists():
            time.sleep(0.1)
        step = self.get_state()["global_next_index"] // self._global_batch + 1
        batch = super().__next__()
        record = {"step": step, "rows": batch["row"].tolist(), "tokens": fingerprints(batch)}
        with open(RECORDS / f"rows-{jax.process_index()}.jsonl", "a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")
        return batch


if __name__ == "__main__":
    pretrain_setup.TrainingBatches = RecordedBatches
    sys.exit(main(["pretrain", *sys.argv[2:]]))
