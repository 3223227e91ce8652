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
    """Writes the numbers of epochs and of the test under <folder>/tensorboard, by update.

    Without a folder it writes nothing.
    """

    def __init__(self, folder: Path | None, step: int):
        self._folder, self._writer = folder and folder / "tensorboard", None
        self._open(step)

    def _open(self, step: int) -> None:
        if self._folder is None:
            return
        from tensorboardX import SummaryWriter

        # TensorBoard hides from here on what was logged past the checkpoint at `step`.
        self._writer = SummaryWriter(str(self._folder), purge_step=step + 1)

    def row(self, row: Mapping[str, Any]) -> None:
        """Logs a row of metrics.jsonl."""
        if self._writer is None:
            return
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
        if self._writer is not None:
            self._writer.close()
