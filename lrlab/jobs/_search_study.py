"""A search as a study of Optuna's, in a file that its dashboard opens."""

import importlib.util
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lrlab.jobs._search import Plan
from lrlab.points import Axis

FILE = "study.db"


def write(folder: Path, plan: Plan, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Writes all trials as <folder>/study.db, whole or not at all; False where Optuna is absent.

    A trial that finished is COMPLETE, one that was stopped PRUNED, one that diverged FAIL. Values
    are scores, of the trial and by update, in the score's own direction.
    """
    if not importlib.util.find_spec("optuna"):
        return False
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    score = plan.spec["score"]
    trials = [_trial(plan, row) for row in sorted(rows, key=lambda row: row["trial"])]
    # Made elsewhere: a path may be no URL, and a shared disk no place for SQLite's locks.
    with tempfile.TemporaryDirectory() as place:
        storage = optuna.storages.RDBStorage(f"sqlite:///{place}/{FILE}")
        try:
            study = optuna.create_study(
                storage=storage,
                study_name=folder.resolve().name,
                direction="maximize" if score == "accuracy" else "minimize",
            )
            study.set_user_attr("method", plan.spec["method"])
            study.set_user_attr("score", f"validation {score}")
            study.add_trials(trials)
        finally:
            storage.remove_session()
            storage.engine.dispose()
        temporary = folder / f".{FILE}"
        shutil.copyfile(Path(place) / FILE, temporary)
    temporary.replace(folder / FILE)
    return True


def _trial(plan: Plan, row: Mapping[str, Any]) -> Any:
    """A row as Optuna keeps it."""
    from optuna.trial import TrialState, create_trial

    states = {
        "finished": TrialState.COMPLETE,
        "stopped": TrialState.PRUNED,
        "diverged": TrialState.FAIL,
    }
    column = 1 if plan.spec["score"] == "accuracy" else 2
    about = "round", "outcome", "updates", "examples", "val_accuracy", "val_loss"
    about += tuple(key for key in ("test_accuracy", "test_loss") if key in row)
    is_lost = row["outcome"] == "diverged"
    return create_trial(
        state=states[row["outcome"]],
        params=dict(row["values"]),
        distributions={axis.key: _distribution(axis) for axis in plan.axes},
        value=None if is_lost else row["curve"][-1][column],
        intermediate_values={point[0]: point[column] for point in row["curve"]},
        user_attrs={key: row[key] for key in about},
    )


def _distribution(axis: Axis) -> Any:
    """What an axis is to Optuna."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if axis.values:
        return CategoricalDistribution(axis.values)
    return FloatDistribution(axis.low, axis.high, log=axis.scale == "log")
