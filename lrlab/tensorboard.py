"""TensorBoard events of a run's rows, without TensorFlow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

TAGS = {  # a key of a row -> group/name; of others the first word is the group: "val/loss"
    "lr": "rate/lr",
    "examples": "examples/seen",
    "seconds": "time/seconds",
}


class Events:
    """Writes the numbers of epochs and of the test under <folder>/tensorboard, by update."""

    def __init__(self, folder: Path, step: int):
        self._folder = folder / "tensorboard"
        self._open(step)

    def _open(self, step: int) -> None:
        from tensorboardX import SummaryWriter

        # TensorBoard hides from here on what was logged past the checkpoint at `step`.
        self._writer = SummaryWriter(str(self._folder), purge_step=step + 1)

    def row(self, row: Mapping[str, Any]) -> None:
        """Logs a row of metrics.jsonl."""
        if row.get("event") == "rollback":
            self.close()
            self._open(row["to"])
        for key, value in row.items():
            test = key.startswith("test_")  # all that the last row has of its own
            if (test or "event" not in row) and key not in ("epoch", "step") and value is not None:
                tag = TAGS.get(key, key.replace("_", "/", 1))
                self._writer.add_scalar(tag, value, row["step"])

    def close(self) -> None:
        """Flushes."""
        self._writer.close()
