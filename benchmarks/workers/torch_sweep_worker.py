"""PyTorch's side of a sweep: a run of each rule and rate, a run after another, as a user would.

Data is read once and shared. After every update the training accuracy over the last 2,000 examples
is looked at, as a run that ends at a target has to.
"""

import json
import platform
import sys
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

# torch lives in an environment of its own, without lrlab; pyright runs in lrlab's.
import torch  # pyright: ignore[reportMissingImports]
from serving import serve
from torch.nn import functional as F  # pyright: ignore[reportMissingImports]
from torch_worker import Run

WINDOW = 2000  # examples
RULES: dict[str, Any] = {  # lrlab's settings, and the fastest implementation that each has
    "sgd": (torch.optim.SGD, {}, {"fused": True}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}, {"fused": True}),
    "adagrad": (torch.optim.Adagrad, {"initial_accumulator_value": 0.1}, {"fused": True}),
    "adadelta": (torch.optim.Adadelta, {}, {"foreach": True}),
    "rmsprop": (torch.optim.RMSprop, {"alpha": 0.9}, {"foreach": True}),
    "adam": (torch.optim.Adam, {}, {"fused": True}),
}


class Trial(Run):
    """A run whose training accuracy is followed."""

    def __init__(self, task: Mapping[str, Any], rule: str, lr: float, like: Run | None):
        super().__init__({**task, "optimizer": "sgd", "lr": lr}, like)
        made, settings, fast = RULES[rule]
        more = fast if task["fast"] else {}
        self.optimizer = made(self.model.parameters(), lr, **settings, **more)
        self.hits: deque[int] = deque(maxlen=WINDOW // self.size)
        self.reached = False

    def follow(self, count: int) -> None:
        """Some more updates."""
        self.model.train()
        for _ in range(count):
            rows = self.batch()
            labels = self.y[rows]
            self.optimizer.zero_grad(set_to_none=True)
            logits = self.model(self.laid_out(self.x[rows]))
            F.cross_entropy(logits, labels).backward()
            self.optimizer.step()
            self.hits.append(int((logits.argmax(1) == labels).sum()))
            self.reached |= sum(self.hits) >= 0.97 * WINDOW


def _work(task: Mapping[str, Any]) -> None:
    trials: list[Trial] = []
    for rule in RULES:
        for lr in task["lrs"]:
            trials.append(Trial(task, rule, lr, trials[0] if trials else None))

    def sweep(count: int) -> dict[str, Any]:
        for trial in trials:
            trial.follow(count)
        seen = [sum(t.hits) / len(t.hits) / t.size for t in trials]
        return {"lane_updates": count * len(trials), "accuracy": max(seen)}

    sweep(10)
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    versions["numpy"] = np.__version__
    parameters = sum(p.numel() for p in trials[0].model.parameters())
    serve({"torch": sweep}, {"versions": versions, "parameters": parameters})


if __name__ == "__main__":
    _work(json.loads(sys.argv[1]))
