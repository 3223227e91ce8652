"""Schedules of PyTorch and Keras, run in an interpreter that has them: JSON in, JSON out.

In:  {"torch": [job, ...], "keras": [job, ...]}, a job being {"kind", "args", "updates"}.
Out: {"versions": {...}, "torch": [{"lr": [...], "momentum": [...]}, ...], "keras": [...]}.

Nothing of lrlab is imported. Keras computes in float64 here, on its NumPy backend, so that the
difference to it is our rounding and not its own.
"""

import json
import os
import sys
import warnings

os.environ["KERAS_BACKEND"] = "numpy"


def torch_values(job):
    import torch

    schedulers = torch.optim.lr_scheduler
    kind, args = job["kind"], job["args"]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
    if kind == "SequentialLR":
        parts = [getattr(schedulers, p["kind"])(optimizer, **p["args"]) for p in args["parts"]]
        scheduler = schedulers.SequentialLR(optimizer, parts, args["milestones"])
    else:
        scheduler = getattr(schedulers, kind)(optimizer, **args)
    lr, momentum, group = [], [], optimizer.param_groups[0]
    for t in range(job["updates"]):
        lr.append(float(group["lr"]))
        momentum.append(float(group["momentum"]))
        optimizer.step()
        if t + 1 < job["updates"]:
            scheduler.step()
    return {"lr": lr, "momentum": momentum}


def keras_values(job):
    import keras

    schedule = getattr(keras.optimizers.schedules, job["kind"])(**job["args"])
    return {"lr": [float(schedule(t)) for t in range(job["updates"])]}


def main():
    jobs, result = json.load(sys.stdin), {"versions": {}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if jobs.get("torch"):
            import torch

            torch.set_num_threads(1)
            result["versions"]["torch"] = torch.__version__.split("+")[0]
            result["torch"] = [torch_values(job) for job in jobs["torch"]]
        if jobs.get("keras"):
            import keras
            from keras.src.backend.common import dtypes

            keras.config.set_floatx("float64")
            dtypes.BIT64_TO_BIT32_DTYPE["float64"] = "float64"  # as Keras has it for TensorFlow
            result["versions"]["keras"] = keras.__version__
            result["keras"] = [keras_values(job) for job in jobs["keras"]]
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
