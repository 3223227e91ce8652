"""PyTorch's side, as one who knows it writes it: data in memory, shuffled by index, no workers.

Inputs are standardised once, before the clock; Adam is the fused one; gradients are set to None.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

# torch lives in an environment of its own, without lrlab; pyright runs in lrlab's.
import torch  # pyright: ignore[reportMissingImports]
from serving import Side, serve
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional as F  # pyright: ignore[reportMissingImports]


class CNN(nn.Module):
    """The layers of lrlab's SmallCNN, which does not pad, or of its MnistCNN, which does."""

    def __init__(self, widths: tuple[int, int, int], padding: int, pixels: int, dropout: float):
        super().__init__()
        one, two, dense = widths
        self.conv1 = nn.Conv2d(1, one, 5, padding=padding)
        self.conv2 = nn.Conv2d(one, two, 5, padding=padding)
        self.dense1, self.dense2 = nn.Linear(two * pixels, dense), nn.Linear(dense, 10)
        self.dropout = dropout

    def forward(self, x: Any) -> Any:
        """Logits; pooling before ReLU is the same, on a quarter of the values."""
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = F.relu(self.dense1(x.flatten(1)))
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        return self.dense2(x)


def tabular() -> nn.Sequential:
    """The layers of lrlab's Tabular."""
    layers, inputs = [], 54
    for width, dropped in zip(
        (512, 256, 256, 128, 256, 256, 512), (1, 0, 1, 0, 0, 1, 1), strict=True
    ):
        layers += [nn.Linear(inputs, width), nn.ReLU(), *[nn.Dropout(0.25)] * dropped]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, 7))


MODELS = {
    "cnn.SmallCNN": lambda: CNN((4, 8, 18), 0, 16, 0.0),
    "cnn.MnistCNN": lambda: CNN((32, 64, 1024), 2, 49, 0.4),
    "mlp.Tabular": tabular,
}


def _read(path: str) -> tuple[Any, Any]:
    """Standardised inputs and labels of the training split."""
    with np.load(path) as found:
        x = (found["train_x"].astype(np.float32) - found["shift"]) * found["scale"]
        y = found["train_y"].astype(np.int64)
    if x.ndim == 4:
        # A copy: a view of one channel has strides that torch takes for channels_last.
        x = x.transpose(0, 3, 1, 2).copy()
    return torch.from_numpy(x), torch.from_numpy(y)


class Run:
    """A model, its optimizer, and the data in memory."""

    def __init__(self, task: Mapping[str, Any], like: "Run | None" = None):
        """`like` is a run whose data serves this one too."""
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        torch.manual_seed(0)
        self.x, self.y = (like.x, like.y) if like else _read(task["data"])
        self.size = task["size"]
        self.layout = getattr(torch, task["layout"])
        self.model = MODELS[task["model"]]().to(memory_format=self.layout)
        parameters, lr = self.model.parameters(), task["lr"]
        if task["optimizer"] == "sgd":
            self.optimizer = torch.optim.SGD(parameters, lr)
        else:
            self.optimizer = torch.optim.Adam(parameters, lr, fused=True)
        self.order, self.first = torch.randperm(len(self.x)), 0

        assert self.has_layout(), f"{task['layout']} is not the layout that is computed in"

    def has_layout(self) -> bool:
        """Whether the convolutions' outputs are laid out as the task says, and in no other way."""
        if not isinstance(self.model, CNN):
            return True
        one = self.model.conv1(self.laid_out(self.x[: self.size]))
        two = self.model.conv2(F.max_pool2d(one, 2))
        layouts = torch.channels_last, torch.contiguous_format
        return all(
            y.is_contiguous(memory_format=layout) == (layout == self.layout)
            for y in (one, two)
            for layout in layouts
        )

    def train(self, count: int) -> dict[str, Any]:
        """A `serving.Side`; adds the mean loss."""
        self.model.train()
        total = torch.zeros(())
        for _ in range(count):
            rows = self.batch()
            self.optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(self.model(self.laid_out(self.x[rows])), self.y[rows])
            loss.backward()
            self.optimizer.step()
            total += loss.detach()
        return {"loss": total.item() / count}

    def batch(self) -> Any:
        """Rows of the next batch, epoch after epoch."""
        if self.first + self.size > len(self.x):
            self.order, self.first = torch.randperm(len(self.x)), 0
        self.first += self.size
        return self.order[self.first - self.size : self.first]

    def evaluate(self, count: int) -> dict[str, Any]:
        """A `serving.Side`: the whole training split; adds the mean loss."""
        self.model.eval()
        losses, correct = torch.zeros(()), torch.zeros(())
        with torch.inference_mode():
            for _ in range(count):
                losses, correct = torch.zeros(()), torch.zeros(())
                for i in range(0, len(self.x), self.size):
                    labels = self.y[i : i + self.size]
                    logits = self.model(self.laid_out(self.x[i : i + self.size]))
                    losses += F.cross_entropy(logits, labels, reduction="sum")
                    correct += (logits.argmax(1) == labels).sum()
        n = len(self.x)
        return {"loss": losses.item() / n, "accuracy": correct.item() / n}

    def laid_out(self, x: Any) -> Any:
        """`x` in the layout that the task says."""
        return x.contiguous(memory_format=self.layout) if x.ndim == 4 else x


def _work(task: Mapping[str, Any]) -> None:
    run = Run(task)
    sides: dict[str, Side] = {"train": run.train, "evaluate": run.evaluate}
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    parameters = sum(p.numel() for p in run.model.parameters())
    run.train(10)
    versions["numpy"] = np.__version__
    serve(sides, {"versions": versions, "parameters": parameters, "cpu": time.process_time()})


if __name__ == "__main__":
    _work(json.loads(sys.argv[1]))
