"""The README's table: every recipe of configs/ over several seeds, as a user runs it.

Claim: each recipe reaches what its docstring and the README say.
Run:   LRLAB_DATA_DIR=... python -m experiments.recipes --recipes=digits,mnist --seeds=5
Makes: experiments/results/recipes_<recipe>_<device>.json, and a table on the terminal.
"""

import argparse
import datetime
import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from lrlab import records

RESULTS = Path(__file__).parent / "results"


def device() -> str:
    """The accelerator's name, or the processor's and its number of cores."""
    import jax

    kind = jax.local_devices()[0].device_kind
    if kind != "cpu":
        return kind
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} cores, {names[0]}"


def train(recipe: str, seed: int, workdir: Path, more: list[str]) -> dict[str, Any]:
    """One run in its own process; its last row, and its data."""
    command = [sys.executable, "-m", "lrlab.main", f"--config=configs/{recipe}.py"]
    command += [f"--workdir={workdir}", f"--config.seed={seed}", *more]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    record = records.read(workdir)
    assert record.final
    return {"seed": seed, "data": record.environment["data"], **record.final}


def main() -> None:
    """Runs, prints, records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", default="digits,mnist,covertype")
    parser.add_argument("--seeds", type=int, default=5)
    known, more = parser.parse_known_args()
    name = device()
    for recipe in known.recipes.split(","):
        with tempfile.TemporaryDirectory() as folder:
            runs = [train(recipe, s, Path(folder) / str(s), more) for s in range(known.seeds)]
        accuracies = [r["test_accuracy"] for r in runs]
        times = [r["seconds"] for r in runs]
        result = {
            "recipe": recipe,
            "changes": more,
            "n": len(runs),
            "test_accuracy_mean": statistics.mean(accuracies),
            "test_accuracy_sd": statistics.stdev(accuracies) if len(runs) > 1 else None,
            "seconds_median": statistics.median(times),
            "seconds_range": [min(times), max(times)],
            "data": runs[0].pop("data"),
            "device": name,
            "date": datetime.date.today().isoformat(),
            "lrlab": records.environment(),
            "runs": [{k: v for k, v in r.items() if k != "data"} for r in runs],
        }
        slug = re.sub(r"\W+", "_", name.lower()).strip("_")
        path = RESULTS / f"recipes_{recipe}_{slug}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        spread = f" ± {100 * result['test_accuracy_sd']:.2f}" if len(runs) > 1 else ""
        print(
            f"{recipe}: test accuracy {100 * result['test_accuracy_mean']:.2f}{spread} % (n = "
            f"{len(runs)}), {result['seconds_median']:.1f} s a run, {name}"
        )


if __name__ == "__main__":
    main()
