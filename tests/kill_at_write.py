"""Saves checkpoints 1, 2, 3, ... and kills itself at its n-th write below the folder.

python kill_at_write.py FOLDER N; prints each step once its save returned.
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np

from lrlab.checkpoint import Checkpoints

WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}
folder, left = Path(sys.argv[1]), int(sys.argv[2])


def watch(event, args):
    global left
    opens = event == "open" and isinstance(args[1], str) and any(m in args[1] for m in "wxa+")
    if (event in WRITES or opens) and str(folder) in str(args[0]):
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)


with Checkpoints(folder, keep=2) as saves:
    sys.addaudithook(watch)
    for step in range(1, 100):
        saves.save(step, {"w": np.full(50, step, np.float32)}, {"epoch": step}, best=1)
        print(step, flush=True)
