"""Ray Tune's population-based training as its guide has it, with what makes it fast.

Two actors are used again and again, and keep the data in memory; nothing is logged or shown;
checkpoints lie on a local disk. Prints a line of JSON when it is done. Argument: what to do, JSON.
"""

import ctypes
import json
import logging
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

BEGAN = time.time()
os.environ.update(  # read when Ray is imported
    {
        "OMP_NUM_THREADS": "1",
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_GLOBAL_CHECKPOINT_S": "3600",
        "TUNE_WARN_THRESHOLD_S": "3600",
    }
)

# Ray and torch live in an environment of their own, without lrlab; pyright runs in lrlab's.
import numpy as np  # noqa: E402
import ray  # noqa: E402 # pyright: ignore[reportMissingImports]
import torch  # noqa: E402 # pyright: ignore[reportMissingImports]
from ray import tune  # noqa: E402 # pyright: ignore[reportMissingImports]
from torch import nn  # noqa: E402 # pyright: ignore[reportMissingImports]
from torch.nn import functional as F  # noqa: E402 # pyright: ignore[reportMissingImports]


class Member(tune.Trainable):
    """A member of the population; a step is an interval, and the look at it."""

    def setup(self, config):
        """Once an actor; the data serve all members that it will be."""
        torch.set_num_threads(1)
        for option in ((-1, -1), (-4, 0), (-8, 1)):  # malloc keeps memory, as lrlab has it
            ctypes.CDLL(None).mallopt(*option)
        task = config["task"]
        self.layout = getattr(torch, task["layout"])
        with np.load(task["data"]) as found:
            for name in "train", "validation":
                x = (found[f"{name}_x"].astype(np.float32) - found["shift"]) * found["scale"]
                x = x.reshape(len(x), -1) if task["widths"] else x.transpose(0, 3, 1, 2)
                x, y = torch.from_numpy(x.copy()), found[f"{name}_y"].astype(np.int64)
                setattr(self, f"{name}_set", (x, torch.from_numpy(y)))
        self.reset_config(config)

    def reset_config(self, new_config):
        """This actor is another member from here on."""
        self.task = new_config["task"]
        self.model = _model(self.task, self.train_set[0][0].numel())
        self.model = self.model.to(memory_format=self.layout)
        self.optimizer = torch.optim.SGD(self.model.parameters(), new_config["lr"])
        self._use(new_config)
        return True

    def _use(self, config):
        """Sets the numbers, also those that a checkpoint brought from another member."""
        for group in self.optimizer.param_groups:
            group |= {"lr": config["lr"], "momentum": config["decay"]}
            group["nesterov"] = config["decay"] > 0  # which torch demands, and makes no difference

    def step(self):
        """An interval: an epoch after another in a new order, whole batches only."""
        began, (x, y) = time.perf_counter(), self.train_set
        self.model.train()
        left, size = self.task["interval"], self.task["size"]
        while left:
            batches = torch.randperm(len(x)).split(size)[: min(left, len(x) // size)]
            left -= len(batches)
            for rows in batches:
                self.optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(self.model(self._laid_out(x[rows])), y[rows]).backward()
                self.optimizer.step()
        trained = time.perf_counter()
        loss, accuracy = self._look()
        took = {"train": trained - began, "look": time.perf_counter() - trained}
        return {"val_loss": loss, "val_accuracy": accuracy, **took}

    def _look(self):
        self.model.eval()
        losses, correct, (x, y) = 0.0, 0, self.validation_set
        with torch.inference_mode():
            for part, labels in zip(x.split(1000), y.split(1000), strict=True):
                logits = self.model(self._laid_out(part))
                losses += F.cross_entropy(logits, labels, reduction="sum").item()
                correct += int((logits.argmax(1) == labels).sum())
        return losses / len(x), correct / len(x)

    def _laid_out(self, x):
        return x.contiguous(memory_format=self.layout) if x.ndim == 4 else x

    def save_checkpoint(self, checkpoint_dir):
        """Weights and the optimizer's buffers."""
        kept = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(kept, Path(checkpoint_dir) / "member.pt")

    def load_checkpoint(self, checkpoint):
        """The inverse; the numbers stay those of this member."""
        kept = torch.load(Path(checkpoint) / "member.pt")
        self.model.load_state_dict(kept["model"])
        self.optimizer.load_state_dict(kept["optimizer"])
        self._use(self.config)


def _model(task, features):
    """The layers of lrlab's MLP, begun in its way, or of its SmallCNN."""
    if not task["widths"]:
        from torch_worker import MODELS

        return MODELS[task["model"]]()
    layers = []
    for width in task["widths"]:
        layers += [nn.Linear(features, width), nn.ReLU(), nn.Dropout(task["dropout"])]
        features = width
    layers.append(nn.Linear(features, 10))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


class Results(tune.Callback):
    """Keeps every result, and when it came."""

    def __init__(self):
        self.rows = []

    def on_trial_result(self, iteration, trials, trial, result, **info):
        """Called by Tune."""
        wanted = "training_iteration", "val_accuracy", "train", "look"
        self.rows.append((time.time(), trial.trial_id, *(result[key] for key in wanted)))


def _main(task):
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        ray.init(
            num_cpus=task["cpus"],
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=folder,
            _node_ip_address="127.0.0.1",
        )
        ready = time.time()
        search = {"lr": tune.loguniform(*task["rates"]), "decay": tune.choice(task["decays"])}
        scheduler = tune.schedulers.PopulationBasedTraining(
            time_attr="training_iteration",
            metric="val_accuracy",
            mode="max",
            perturbation_interval=1,
            hyperparam_mutations={"lr": search["lr"], "decay": list(task["decays"])},
            quantile_fraction=task["fraction"],
            resample_probability=task["resample"],
            perturbation_factors=tuple(task["factors"]),
            log_config=False,
            synch=task["synch"],
        )
        results = Results()
        tuner = tune.Tuner(
            tune.with_resources(Member, {"cpu": 1}),
            param_space={**search, "task": task},
            tune_config=tune.TuneConfig(
                scheduler=scheduler, num_samples=task["population"], reuse_actors=True
            ),
            run_config=tune.RunConfig(
                name="pbt",
                storage_path=str(Path(folder) / "results"),
                stop={"training_iteration": task["generations"]},
                callbacks=[results],
                verbose=0,
            ),
        )
        found = tuner.fit()
        over = time.time()
        assert not found.errors, found.errors
        ray.shutdown()
    versions = {"ray": ray.__version__, "torch": torch.__version__, "numpy": np.__version__}
    weights = sum(p.numel() for p in _model(task, task["features"]).parameters())
    print(
        json.dumps(
            {
                "versions": {**versions, "python": platform.python_version()},
                "parameters": weights,
                "began": BEGAN,
                "ready": ready,
                "over": over,
                "copies": scheduler._num_perturbations,
                "rows": results.rows,
            }
        )
    )


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
