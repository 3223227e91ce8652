"""Walks torch's and Keras's optimizers in their own interpreter: JSON in, JSON out.

In: {"library": "torch" or "keras", "rule": ..., "draws": [{"params", "gradients", "rates",
keywords}]}. Out: {"traces": float64 [draws, updates, params], "versions": {...}}.
"""

import json
import os
import sys

os.environ.setdefault("KERAS_BACKEND", "torch")

TORCH = {
    "sgd": ("SGD", {}),
    "momentum": ("SGD", {}),
    "nesterov": ("SGD", {"nesterov": True}),
    "adagrad": ("Adagrad", {}),
    "adadelta": ("Adadelta", {}),
    "rmsprop": ("RMSprop", {}),
    "rmsprop, centred": ("RMSprop", {"centered": True}),
    "adam": ("Adam", {}),
    "adamw": ("AdamW", {}),
}
KERAS = {
    "sgd": ("SGD", {}),
    "momentum": ("SGD", {}),
    "nesterov": ("SGD", {"nesterov": True}),
    "adagrad": ("Adagrad", {}),
    "adadelta": ("Adadelta", {}),
    "rmsprop": ("RMSprop", {}),
    "rmsprop, centred": ("RMSprop", {"centered": True}),
    "adam": ("Adam", {}),
    "adamw": ("AdamW", {}),
}


def torch_keywords(given):
    """lrlab's names as torch's."""
    names = {"decay": "momentum", "initial_accumulator_value": "initial_accumulator_value"}
    out = {names.get(k, k): v for k, v in given.items() if k not in ("b1", "b2")}
    if "b1" in given:
        out["betas"] = (given["b1"], given["b2"])
    return out


def keras_keywords(given):
    """lrlab's names as Keras's."""
    names = {"decay": "momentum", "b1": "beta_1", "b2": "beta_2", "eps": "epsilon"}
    return {names.get(k, k): v for k, v in given.items()}


def torch_trace(rule, draw):
    """Parameters after every update."""
    import torch

    name, fixed = TORCH[rule]
    params = torch.tensor(draw["params"], dtype=torch.float64, requires_grad=True)
    given = dict(draw["keywords"])
    if name == "RMSprop":
        given["alpha"] = given.pop("decay")
    tx = getattr(torch.optim, name)([params], lr=1.0, **fixed, **torch_keywords(given))
    out = []
    for rate, gradient in zip(draw["rates"], draw["gradients"], strict=True):
        tx.param_groups[0]["lr"] = rate
        params.grad = torch.tensor(gradient, dtype=torch.float64)
        tx.step()
        out.append(params.detach().tolist())
    return out


def keras_trace(rule, draw):
    """Parameters after every update."""
    import keras
    import numpy as np

    keras.config.set_floatx("float64")
    name, fixed = KERAS[rule]
    given = dict(draw["keywords"])
    if name == "RMSprop":
        given = {("rho" if k == "decay" else k): v for k, v in given.items()}
    tx = getattr(keras.optimizers, name)(learning_rate=1.0, **fixed, **keras_keywords(given))
    params = keras.Variable(np.array(draw["params"]), dtype="float64")
    tx.build([params])
    out = []
    for rate, gradient in zip(draw["rates"], draw["gradients"], strict=True):
        tx.learning_rate = rate
        tx.apply([keras.ops.convert_to_tensor(np.array(gradient), dtype="float64")])
        out.append(np.asarray(keras.ops.convert_to_numpy(params)).tolist())
    return out


def main():
    """Answers one request."""
    request = json.load(sys.stdin)
    if request["library"] == "torch":
        import torch

        trace, versions = torch_trace, {"torch": torch.__version__.partition("+")[0]}
    else:
        import keras
        import torch

        trace = keras_trace
        versions = {"keras": keras.__version__, "backend": os.environ["KERAS_BACKEND"]}
    traces = [trace(request["rule"], draw) for draw in request["draws"]]
    json.dump({"traces": traces, "versions": versions}, sys.stdout)


if __name__ == "__main__":
    main()
