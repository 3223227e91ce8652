"""A host of two: what they tell each other, as JSON in a file. Arguments: port, number, file."""

import json
import sys
from pathlib import Path

import numpy as np

from lrlab import devices

port, number, file = sys.argv[1], int(sys.argv[2]), sys.argv[3]
devices.join(f"127.0.0.1:{port}", 2, number)
tree = {"w": np.array([-0.0, np.nan, 1e-40, np.inf], np.float32), "step": np.array(7, np.int32)}
like = {"w": np.empty(4, np.float32), "step": np.empty((), np.int32)}
found, position = devices.shared(lambda: (tree, {"epoch": 3, "note": "ü" * 5}), like)
said = {
    "hosts": devices.hosts(),
    "devices": devices.count(),
    "mine": [devices.mine().start, devices.mine().stop],
    "first": devices.is_first(),
    "largest": devices.largest(0.1 * (number + 1)),
    "told": devices.told(1 / 3 + number),
    "led": devices.led(lambda: 5.5),
    "shared": {k: v.tobytes().hex() for k, v in found.items()},
    "position": position,
    "nothing": devices.shared(lambda: None, like) is None,
    "same": devices.differs(tree),
    "other": devices.differs({"w": np.float32([1, 1 + number * 1e-7])}),
}
for who in (0, 1):
    try:
        with devices.together():
            if number == who:
                raise KeyError("only here")
        said[f"failed {who}"] = "went on"
    except KeyError:
        said[f"failed {who}"] = "own error"
    except devices.HostError as e:
        said[f"failed {who}"] = str(e)
Path(file).write_text(json.dumps(said))
