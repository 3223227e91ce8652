"""The worker's half of `measure.Worker`: lines of JSON in, lines of JSON out."""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

Side = Callable[[int], dict[str, Any]]


def serve(sides: Mapping[str, Side], about: Mapping[str, Any]) -> None:
    """Says what it is, then runs the sides that it is told to until its input ends.

    A side does its work `count` times and returns what it adds to the answer; "wall" and "cpu"
    among that replace those of the whole call. "used" is always of the whole call: what else the
    machine was busy with is what is left.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    _say(answers, {"sides": list(sides), **about})
    for line in sys.stdin:
        wanted = json.loads(line)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        wall, cpu = time.perf_counter(), time.process_time()
        more = sides[wanted["side"]](wanted["count"])
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        _say(answers, {"wall": wall, "cpu": cpu, "used": cpu, "faults": faults, **more})


def _say(answers: Any, answer: Mapping[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()
