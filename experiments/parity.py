"""docs/parity.md, from the records that the parity tests wrote.

Claim: every schedule and rule is within its tolerance of the libraries that it stands for.
Run:   LRLAB_PARITY_PYTHON=<python with torch and keras> LRLAB_WRITE_PARITY=1 pytest -m slow
       tests/test_parity.py tests/test_parity_rules.py, then python -m experiments.parity
Makes: docs/parity.md
"""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "parity.md"


def schedule_rows(record: dict[str, Any]) -> list[str]:
    """Table rows of the schedules' record."""
    return [
        f"| `{r['ours']}` | {r['library']} {record['versions'][r['library']]}, `{r['theirs']}` | "
        f"{r['draws']} | {r['largest']:.1e} | {r['tolerance']:.0e} | {r['why']} |"
        for r in record["rows"]
    ]


def rule_rows(record: list[dict[str, Any]]) -> list[str]:
    """Table rows of the rules' record."""
    return [
        f"| `{r['what']}` | {r['library']} {r['versions'].get(r['library'], '')} | {r['draws']} | "
        f"{r['largest']:.1e} | {r['tolerance']:.0e} | {r['largest_float64']:.1e} |"
        for r in record
    ]


def main() -> None:
    """Writes the page."""
    schedules = json.loads((HERE / "results" / "parity_schedules.json").read_text())
    rules = json.loads((HERE / "results" / "parity_rules.json").read_text())
    out = sum(r["largest"] > r["tolerance"] for r in [*schedules["rows"], *rules])
    lines = [
        "# Parity",
        "",
        "Largest relative difference between lrlab and each library, over random parameters and",
        f"every update of the horizon and past it. Rows out of tolerance: {out}. Written by",
        "`python -m experiments.parity` from what the parity tests recorded.",
        "",
        "## Schedules",
        "",
        "| lrlab | library | draws | largest difference | tolerance | why looser |",
        "| --- | --- | --- | --- | --- | --- |",
        *schedule_rows(schedules),
        "",
        "## Rules",
        "",
        "Each draw is 25 updates at changing rates; the last column is the same in float64.",
        "",
        "| lrlab | library | draws | largest difference | tolerance | in float64 |",
        "| --- | --- | --- | --- | --- | --- |",
        *rule_rows(rules),
    ]
    PAGE.write_text("\n".join(lines) + "\n")
    print(f"{PAGE.name}: {len(schedules['rows'])} schedule rows, {len(rules)} rule rows, {out} out")


if __name__ == "__main__":
    main()
