"""Measuring by turns: workers that wait, rounds of A and B, ratios by round, a table, a record.

A machine's speed wanders, so what is compared runs alternately, each side idle while another has
its turn, and a ratio is taken within a round. What other processes took of the machine meanwhile is
read from /proc/stat and kept with every turn. Linux only.
"""

import dataclasses
import datetime
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WORKERS = ROOT / "benchmarks" / "workers"
REST = 0.05  # seconds before a turn, in which the side before stops spinning
STARVED = {1: 0.95, 2: 1.5}  # cores by threads: a turn that got fewer, while others ran, is void
OTHERS = 0.1  # cores that others may take before that is why

# glibc may give memory back to the kernel after every update, in some processes and not in others;
# the page faults then cost up to half of the time. With these it keeps what it has, and for XLA's
# threads too, whose own arenas would heed none of the rest.
KEEP = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": "10000000000",
    "MALLOC_MMAP_THRESHOLD_": "10000000000",
    "MALLOC_TOP_PAD_": "268435456",
}

# "wall", "cpu", "faults": of what is timed; "others": cores; "threads": if not the row's; more
Turn = dict[str, Any]
Side = Callable[[], Turn]


@dataclasses.dataclass(frozen=True)
class Goal:
    """What a ratio or a time has to be; without a bound a ratio is only reported.

    kind: "speedup" is theirs / ours and has to reach `bound`; "overhead" is ours / theirs and may
    reach it. theirs: sides, of which the fastest counts; none, where only `seconds` bounds ours.
    number: in the table of goals.
    """

    kind: str
    ours: str
    theirs: tuple[str, ...] = ()
    bound: float | None = None
    seconds: float | None = None
    number: int | None = None

    def text(self) -> str:
        """For the table."""
        sign = ">=" if self.kind == "speedup" else "<="
        parts = [
            "" if self.bound is None else f"{sign} {self.bound:g}x",
            "" if self.seconds is None else f"<= {self.seconds:g} s",
        ]
        return " and ".join(p for p in parts if p)

    def met(self, ratio: float | None, seconds: float) -> bool | None:
        """Whether medians reach it; None where there is nothing to reach."""
        found = []
        if self.bound is not None and ratio is not None:
            found.append(ratio >= self.bound if self.kind == "speedup" else ratio <= self.bound)
        if self.seconds is not None:
            found.append(seconds <= self.seconds)
        return all(found) if found else None


@dataclasses.dataclass(frozen=True)
class Row:
    """Sides that are compared.

    threads: cores that each side has. count: what a turn is divided by. per: its name.
    """

    title: str
    threads: int
    count: int
    goals: tuple[Goal, ...]
    per: str = "update"


class Worker:
    """A process that was told what to prepare, and then measures one side at a time.

    It has the last `threads` cores that this process may use, but for the last `spared`, from
    before its first import.
    """

    def __init__(
        self,
        python: str,
        script: str,
        task: Mapping[str, Any],
        threads: int,
        env: dict[str, str],
        spared: int = 0,
    ):
        self._process = subprocess.Popen(
            [python, str(WORKERS / script), json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
            preexec_fn=pin(threads, spared),
        )
        self.about = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended, code {self._process.wait()}; it says why above")
        return json.loads(line)

    def turn(self, side: str, count: int) -> Turn:
        """Lets the worker run a side `count` times."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"side": side, "count": count}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> float:
        """Ends the process; returns the core seconds that it took in its life."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return _end(self._process)


def pin(threads: int, spared: int = 0) -> Callable[[], None]:
    """For a child to call before it begins: it stays on the last `threads` cores but `spared`."""
    cores = sorted(os.sched_getaffinity(0), reverse=True)[spared : spared + threads]
    return lambda: os.sched_setaffinity(0, cores)


def environment(cache: Path) -> dict[str, str]:
    """Of processes that run lrlab from this checkout, on the CPU, with a cache of their own."""
    paths = [str(ROOT), str(WORKERS), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
        "JAX_PLATFORMS": "cpu",
        "LRLAB_CACHE_DIR": str(cache),
    }


def start_of_run(arguments: Sequence[str], folder: Path, env: dict[str, str], threads: int) -> Turn:
    """Seconds from starting `python -m lrlab.main` until its first updates are on record."""
    began, command = time.perf_counter(), [sys.executable, "-m", "lrlab.main", *arguments]
    process = subprocess.Popen(
        [*command, f"--workdir={folder}"],
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
        env=env,
        preexec_fn=pin(threads),
    )
    record, rows = folder / "schedule.csv", 0
    while rows < 1:
        if process.poll() is not None:
            raise RuntimeError(f"{' '.join(arguments)} ended, code {process.returncode}")
        time.sleep(0.002)
        rows = record.read_text().count("\n") - 1 if record.exists() else 0
    wall = time.perf_counter() - began
    process.kill()
    used = _end(process)
    return {"wall": wall, "cpu": used, "used": used, "updates": rows}


def _end(process: subprocess.Popen) -> float:
    """Waits for a process; returns the core seconds that it took in its life."""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return used.ru_utime + used.ru_stime


def lrlab(
    task: Mapping[str, Any], threads: int, env: dict[str, str], script: str = "lrlab_worker.py"
) -> Worker:
    """A worker of lrlab, in this Python."""
    return Worker(sys.executable, script, task, threads, env)


def store(paths: Mapping[str, str], random: bool, env: Mapping[str, str]) -> dict[str, str]:
    """Writes data sets by name for all workers; returns what they are."""
    home = {k: v for k, v in env.items() if k != "LRLAB_CACHE_DIR"}  # decoded data is in the user's
    home |= {k: os.environ[k] for k in ("LRLAB_CACHE_DIR",) if k in os.environ}
    task = {"job": "data", "paths": paths, "random": random}
    worker = lrlab(task, len(os.sched_getaffinity(0)), home)
    worker.close()
    return worker.about["notes"]


def alternate(sides: Mapping[str, Side], rounds: int) -> list[dict[str, Turn]]:
    """Every side once a round, in turning order, after a round that only warms up."""
    names, found = list(sides), []
    for number in range(-1, rounds):
        turns: dict[str, Turn] = {}
        for name in names if number % 2 == 0 else reversed(names):
            time.sleep(REST)
            busy, began = _busy(), time.perf_counter()
            turn = sides[name]()
            busy, passed = _busy() - busy, time.perf_counter() - began
            others = max(0.0, busy - turn.pop("used")) / passed
            turns[name] = {**turn, "others": round(others, 3)}
        if number >= 0:
            found.append({name: turns[name] for name in names})
    return found


def _busy() -> float:
    """Core seconds that the whole machine has worked so far, stolen ones too."""
    fields = [int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _wait, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def summary(row: Row, rounds: Sequence[Mapping[str, Turn]]) -> dict[str, Any]:
    """What a record says about a row: sides, ratios by round, rounds that were dropped and why."""
    # The start of a process is mostly one thread, however many it may have.
    threads = 1 if row.per == "start" else row.threads
    dropped = {
        i: f"{name}: {turn['cpu'] / turn['wall']:.2f} cores, others {turn['others']:.2f}"
        for i, turns in enumerate(rounds)
        for name, turn in turns.items()
        if turn["cpu"] < STARVED[turn.get("threads", threads)] * turn["wall"]
        and turn["others"] > OTHERS
    }
    kept = [turns for i, turns in enumerate(rounds) if i not in dropped]
    clean = bool(kept)
    kept = kept or list(rounds)
    sides = {
        name: {
            f"ms_per_{row.per}": _spread([t[name]["wall"] / row.count * 1e3 for t in kept]),
            "cores": round(statistics.median(t[name]["cpu"] / t[name]["wall"] for t in kept), 2),
            "others": round(statistics.median(t[name]["others"] for t in kept), 2),
            "faults": round(statistics.median(t[name].get("faults", 0) for t in kept) / row.count),
        }
        for name in kept[0]
    }
    goals = [_judged(goal, kept) | ({} if clean else {"met": None}) for goal in row.goals]
    return {
        "title": row.title,
        "threads": row.threads,
        f"{row.per}s_a_turn": row.count,
        "sides": sides,
        "goals": goals,
        "dropped": {str(i): why for i, why in dropped.items()},
        "clean": clean,
        "rounds": rounds,
    }


def _judged(goal: Goal, rounds: Sequence[Mapping[str, Turn]]) -> dict[str, Any]:
    """A goal with what was measured: the ratio by round, whether its median meets the goal."""
    theirs, ratio = None, None
    if goal.theirs:
        theirs = min(goal.theirs, key=lambda n: statistics.median(t[n]["wall"] for t in rounds))
        ratios = [t[theirs]["wall"] / t[goal.ours]["wall"] for t in rounds]
        ratio = _spread(ratios if goal.kind == "speedup" else [1 / r for r in ratios])
    seconds = statistics.median(t[goal.ours]["wall"] for t in rounds)
    met = goal.met(ratio["median"] if ratio else None, seconds)
    who = {"number": goal.number, "kind": goal.kind, "ours": goal.ours, "theirs": theirs}
    return {**who, "ratio": ratio, "goal": goal.text(), "met": met}


def _spread(values: Sequence[float]) -> dict[str, float]:
    found = statistics.median(values), min(values), max(values)
    return {k: round(v, 4) for k, v in zip(("median", "min", "max"), found, strict=True)}


def show(name: str, row: Row, result: Mapping[str, Any]) -> None:
    """Prints a row of the table."""
    print(f"\n{name}: {row.title}; {row.threads} thread{'s' * (row.threads > 1)}")
    for side, found in result["sides"].items():
        ms = found[f"ms_per_{row.per}"]
        print(
            f"  {side:<34} {ms['median']:>10.3f} ms/{row.per} "
            f"({ms['min']:.3f} .. {ms['max']:.3f}), {found['cores']:.2f} cores, "
            f"others {found['others']:.2f}, faults {found['faults']:,}"
        )
    for goal in result["goals"]:
        number = f"goal {goal['number']}: " if goal["number"] else ""
        what, ratio = goal["ours"], goal["ratio"]
        if ratio:
            pair = goal["theirs"], goal["ours"]
            what = " / ".join(pair if goal["kind"] == "speedup" else pair[::-1])
            what += f" = {ratio['median']:.3f}x ({ratio['min']:.3f} .. {ratio['max']:.3f})"
        none = "no verdict" if goal["goal"] else "no goal"
        verdict = {True: "met", False: "NOT MET", None: none}[goal["met"]]
        print(f"  {number}{what}; {goal['goal']}{'; ' * bool(goal['goal'])}{verdict}")
    for number, why in result["dropped"].items():
        print(f"  round {number} dropped, starved: {why}")
    if not result["clean"]:
        print("  no clean round: all were kept, and prove nothing")
    sys.stdout.flush()


def write(out: Path, record: Mapping[str, Any]) -> None:
    """Writes a record, the machine and the date included."""
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"date": now, "device": device(), **record}, indent=1)
    # A list or object of plain numbers reads better, and differs less, on one line.
    text = re.sub(r"[{\[]\s+([^][{}]+?)\s+([}\]])", _one_line, text)
    out.write_text(text + "\n", encoding="utf-8")
    missed = [
        f"{name}: {goal['ours']}"
        for name, row in record["rows"].items()
        for goal in row["goals"]
        if goal["met"] is False
    ]
    void = [name for name, row in record["rows"].items() if not row["clean"]]
    print(f"\nwrote {out}; goals missed: {', '.join(missed) or 'none'}")
    if void:
        print(f"no verdict, for want of a clean round: {', '.join(void)}")


def _one_line(match: re.Match[str]) -> str:
    inside = re.sub(r"\s*\n\s*", " ", match[1])
    return f"{match[0][0]}{inside}{match[2]}" if len(inside) < 160 else match[0]


def device() -> dict[str, Any]:
    """The processor, and how many cores of it this process may use."""
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "model": found[1].strip() if found else "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory / 1e9, 1),
    }


def default_out(name: str) -> Path:
    """experiments/results/<name>_<device>.json."""
    words = re.findall(r"[a-z0-9]+", f"{device()['cores']} cores {device()['model']}".lower())
    return ROOT / "experiments" / "results" / f"{name}_{'_'.join(words)}.json"
