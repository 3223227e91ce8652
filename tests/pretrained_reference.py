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

# The C++ operators of a torchvision built for CUDA do not load beside a torch for CPUs. No net here
# uses one, but torchvision describes this one on import, so it must have a name.
try:
    torch.ops.torchvision.nms  # noqa: B018 - raises where there is none
except (AttributeError, RuntimeError):
    OPERATORS = torch.library.Library("torchvision", "DEF")
    OPERATORS.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


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


def computed(folder, name, size, images, seed):
    from torchvision import models

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
        import torchvision

        torch.set_num_threads(2)
        folder = Path(job["folder"])
        weights = {name: computed(folder, name, **args) for name, args in job["nets"].items()}
    versions = {lib.__name__: lib.__version__.split("+")[0] for lib in (torch, torchvision)}
    json.dump({"versions": versions, "weights": weights}, sys.stdout)


if __name__ == "__main__":
    main()
