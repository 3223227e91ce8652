"""TensorBoard events of a run's rows, without TensorFlow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Events:
    """Writes the numbers of epoch rows under <folder>/tensorboard, by update."""

    def __init__(self, folder: Path, step: int):
        from tensorboardX import SummaryWriter

        # What a stopped run logged past its checkpoint is hidden by TensorBoard from here on.
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step)

    def row(self, row: Mapping[str, Any]) -> None:
        """Logs a row of metrics.jsonl; rows of events carry no curves."""
        for key, value in row.items():
            if "event" not in row and key not in ("epoch", "step") and value is not None:
                self._writer.add_scalar(key.replace("_", "/", 1), value, row["step"])

    def close(self) -> None:
        """Flushes."""
        self._writer.close()
