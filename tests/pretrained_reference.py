"""Nets of torchvision in an interpreter that has them: their weights in files, what they compute.

In:  {"folder": ..., "nets": {name: {"size": pixels, "images": how many, "seed": ...}}}, JSON.
Out: {"versions": {...}, "weights": {name: how many}}, and in the folder, of each net,
     <name>.safetensors, its state dict, and <name>.npz: `x` [images, 3, size, size], `logits` in
     evaluation and, of nets with BatchNorm, `train_logits` and `bn1_mean`, `bn1_var` afterwards.

Nothing of lrlab is imported. Weights and BatchNorm's averages are random; no file is fetched.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

OPERATORS = torch.library.Library("torchvision", "FRAGMENT")  # its names go when it does


def imported():
    """torchvision; a build for CUDA too, whose C++ operators do not load beside a torch for CPUs.

    No net here uses one, but torchvision describes two of them on import, so these need names.
    """
    try:
        import torchvision
    except RuntimeError as e:
        if "torchvision::nms does not exist" not in str(e):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name in "nms", "qnms":
            OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        import torchvision
    return torchvision


def randomised(net, generator):
    """BatchNorm as after training: nothing is 0 or 1."""
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 2.0),
            ):
                tensor.data.uniform_(low, high, generator=generator)
        elif getattr(module, "bias", None) is not None:
            module.bias.data.uniform_(-0.3, 0.3, generator=generator)
    return net


def computed(models, folder, name, size, images, seed):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = randomised(getattr(models, name)(weights=None), generator)
    x = torch.randn(images, 3, size, size, generator=generator)
    save_file(net.state_dict(), str(folder / f"{name}.safetensors"))
    with torch.no_grad():
        found = {"x": x, "logits": net.eval()(x)}
        if hasattr(net, "bn1"):
            found["train_logits"] = net.train()(x)
            found |= {"bn1_mean": net.bn1.running_mean, "bn1_var": net.bn1.running_var}
    np.savez(folder / f"{name}.npz", **{k: v.numpy() for k, v in found.items()})
    return sum(p.numel() for p in net.parameters())


def main():
    job = json.load(sys.stdin)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torchvision = imported()
        torch.set_num_threads(2)
        folder = Path(job["folder"])
        weights = {
            name: computed(torchvision.models, folder, name, **args)
            for name, args in job["nets"].items()
        }
    versions = {lib.__name__: lib.__version__.split("+")[0] for lib in (torch, torchvision)}
    json.dump({"versions": versions, "weights": weights}, sys.stdout)


if __name__ == "__main__":
    main()
