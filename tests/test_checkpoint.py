import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from lrlab.checkpoint import Checkpoints


def state(x):
    return {
        "step": np.int32(x),
        "params": {"w": np.full((3, 2), x, np.float32)},
        "opt": (np.zeros(2, np.float32),),
    }


def save(saves, *steps, best=None):
    for step in steps:
        saves.save(step, state(step), {"epoch": step}, best=best)


def restored(folder):
    with Checkpoints(folder) as saves:
        found = saves.restore(state(0))
        return (None if found is None else int(found[0]["step"])), saves.warnings


def test_what_was_saved_is_restored_to_the_bit(tmp_path):
    with Checkpoints(tmp_path) as saves:
        rng = np.random.default_rng(0)
        tree = {
            "a": rng.normal(size=(5, 3)).astype(np.float32),
            "n": np.int32(7),
            "t": (np.float32(0.1),),
        }
        saves.save(7, tree, {"epoch": 3, "losses": [0.1, 1 / 3], "best": None})
        found, position = saves.restore(
            {"a": np.zeros((5, 3), np.float32), "n": np.int32(0), "t": (np.float32(0),)}
        )
    assert position == {"epoch": 3, "losses": [0.1, 1 / 3], "best": None}
    for key in tree:
        np.testing.assert_array_equal(found[key], tree[key])


def test_the_last_ones_and_the_best_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as saves:
        save(saves, 1, 2, 3, best=None)
        save(saves, 4, 5, 6, best=3)
        assert saves.steps() == [3, 5, 6]
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
            name for s in (3, 5, 6) for name in (str(s), f"{s}.manifest")
        )


def test_going_back_replaces_later_steps(tmp_path):
    with Checkpoints(tmp_path) as saves:
        save(saves, 5, 10)
        saves.save(5, state(99), {"epoch": 0})  # Orbax alone would skip this save in silence
        assert saves.steps() == [5]
        assert int(saves.restore(state(0))[0]["step"]) == 99


def damage(kind, path, other):
    content = path.read_bytes()
    if kind == "deleted":
        path.unlink()
    elif kind == "emptied":
        path.write_bytes(b"")
    elif kind == "halved":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "flipped":
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif kind == "swapped":
        path.write_bytes(other.read_bytes() if other.exists() else b"other")
    elif kind == "directory":
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize(
    "kind", ["deleted", "emptied", "halved", "flipped", "swapped", "directory"]
)
def test_any_damaged_file_is_found_and_the_step_before_is_used(tmp_path, kind):
    reference = tmp_path / "reference"
    with Checkpoints(reference) as saves:
        save(saves, 5, 10)
    files = sorted(p.relative_to(reference) for p in (reference / "10").rglob("*") if p.is_file())
    tried = 0
    for number, file in enumerate(files):
        folder = tmp_path / str(number)
        shutil.copytree(reference, folder)
        before = (folder / file).read_bytes()
        damage(kind, folder / file, folder / "5" / file.relative_to("10"))
        if (folder / file).is_file() and (folder / file).read_bytes() == before:
            continue  # the damage made no difference: an empty file emptied
        step, warnings = restored(folder)
        assert step == 5, file
        assert file.relative_to("10").as_posix() in warnings[0]
        assert (folder / "10.corrupt").is_dir()
        tried += 1
    assert tried >= 5


def test_a_damaged_newest_checkpoint_falls_back(tmp_path):
    with Checkpoints(tmp_path) as saves:
        save(saves, 5, 10)
    victim = max(
        (p for p in (tmp_path / "10" / "state").rglob("*") if p.is_file()),
        key=lambda p: p.stat().st_size,
    )
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    step, warnings = restored(tmp_path)
    assert step == 5
    assert "set aside as 10.corrupt" in warnings[0]
    with Checkpoints(tmp_path) as saves:  # and the run can save that step anew
        save(saves, 10)
        assert saves.steps() == [5, 10]


def test_what_a_killed_save_left_is_no_step(tmp_path):
    with Checkpoints(tmp_path) as saves:
        save(saves, 5, 10)
    (tmp_path / "10.manifest").unlink()  # killed between Orbax's commit and the manifest
    (tmp_path / "12.orbax-checkpoint-tmp-3").mkdir()  # killed within Orbax's save
    (tmp_path / "15.manifest").write_text(json.dumps({"sha256": {}}))  # killed within a delete
    assert restored(tmp_path) == (5, [])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["5", "5.manifest"]


def test_a_checkpoint_of_another_model_names_the_difference(tmp_path):
    with Checkpoints(tmp_path) as saves:
        save(saves, 5)
        with pytest.raises(
            ValueError, match=r"\['w'\]: float32\[3, 2\] saved, float32\[4, 2\] wanted"
        ):
            saves.restore(state(0) | {"params": {"w": np.zeros((4, 2), np.float32)}})


class Killed(BaseException):
    """Passes whatever would clean up, as a kill does."""


class Faulty:
    """Lets the n-th write below a folder fail; all that Orbax does in a save is one.

    What fails within Orbax is tried by child processes and on real disks: its threads would wait
    for each other.
    """

    def __init__(self):
        self.folder, self.left, self.fault, self.orbax = None, 0, Killed(), None
        sys.addaudithook(self.watch)  # for the rest of the process: it cannot be removed

    def watch(self, event, args):
        writes = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}
        opens = event == "open" and isinstance(args[1], str) and any(m in args[1] for m in "wxa+")
        if self.folder and (event in writes or opens) and str(self.folder) in str(args[0]):
            self.write()

    def write(self):
        self.left -= 1
        if self.left == 0:
            self.folder = None  # it happens once
            raise self.fault

    def save(self, *args, **kwargs):
        self.write()
        folder, self.folder = self.folder, None
        self.orbax.save(*args, **kwargs)
        self.folder = folder
        self.write()

    def close(self):
        self.orbax.close()


FAULTY = Faulty()


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), Killed()])
def test_a_step_saved_anew_is_there_whatever_happens_meanwhile(tmp_path, fault):
    """faults.md F15: what a full disk or a kill leaves is the old one, or the new one, whole."""
    point, found, FAULTY.left = 0, [], 0
    while FAULTY.left <= 0:
        point += 1
        folder = tmp_path / str(point)
        with Checkpoints(folder) as saves:
            save(saves, 5, 10)
            args, FAULTY.orbax = saves._orbax
            saves._orbax = args, FAULTY
            FAULTY.folder, FAULTY.left, FAULTY.fault = folder, point, fault
            with contextlib.suppress(OSError, Killed):
                saves.save(10, state(99), {"epoch": 0})
            FAULTY.folder = None
        with Checkpoints(folder) as saves:
            at, position = saves.restore(state(0))
            found.append((int(at["step"]), position["epoch"]))
            assert saves.steps() == [5, 10]
            assert saves.warnings == []
            saves.save(10, state(99), {"epoch": 0})  # and there is room again
            assert int(saves.restore(state(0))[0]["step"]) == 99
        assert len([*folder.iterdir()]) == 4, "leftovers"
    assert set(found) == {(10, 10), (99, 0)}
    assert found == sorted(found), "once it is the new one it stays so"
    assert len(found) >= 6


def test_a_save_that_orbax_cannot_write_is_an_os_error_and_leaves_the_old_one(
    tmp_path, monkeypatch
):
    with Checkpoints(tmp_path) as saves:
        save(saves, 5)

        def full(folder, *_, **__):
            (folder.parent / f"{folder.name}.orbax-checkpoint-tmp").mkdir()
            raise ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device")

        monkeypatch.setattr(saves._orbax[1], "save", full)
        for step in 5, 9:
            with pytest.raises(OSError, match=rf"checkpoint {step} was not .* No space left"):
                saves.save(step, state(99), {"epoch": 0})
        monkeypatch.undo()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["5", "5.manifest"]
        assert int(saves.restore(state(0))[0]["step"]) == 5


def test_what_is_there_already_is_not_written_again(tmp_path):
    with Checkpoints(tmp_path) as saves:
        saves.save(5, state(5), {"epoch": 5, "seconds": 1.0})
        before = {p: p.stat() for p in tmp_path.rglob("*")}
        saves.save(5, state(5), {"epoch": 5, "seconds": 2.0})
        assert {p: p.stat() for p in tmp_path.rglob("*")} == before
        for changed in (state(6), {"epoch": 5}), (state(6), {"epoch": 6}):
            saves.save(5, *changed)
            found, position = saves.restore(state(0))
            assert (int(found["step"]), position) == (6, changed[1])
        saves.save(5, state(5), {"epoch": 5, "seconds": 3.0})
        assert sorted(p.name for p in tmp_path.iterdir()) == ["5-new", "5.manifest"]


def test_nothing_imports_orbax_before_the_first_save(tmp_path):
    code = (
        "import sys, pathlib; from lrlab.checkpoint import Checkpoints\n"
        f"with Checkpoints(pathlib.Path({str(tmp_path)!r})) as s: assert s.restore({{}}) is None\n"
        "print([m for m in sys.modules if m.startswith('orbax')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_killed_at_every_write_of_a_save_no_finished_step_is_lost(tmp_path):
    """faults.md F02: from the first write of save 3 to the last of save 5, deletions among them."""
    script = Path(__file__).parent / "kill_at_write.py"
    tried, left_behind, point, returned = 0, 0, 1, 0
    while returned < 5:
        folder = tmp_path / str(point)
        command = [sys.executable, str(script), str(folder), str(point)]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        returned = len(done.stdout.split())
        if (
            returned < 2
        ):  # the first two saves are those of a young folder: every third point will do
            point += 3
        else:
            point += 1
        before = {p.name for p in folder.iterdir()}
        with Checkpoints(folder, keep=2) as saves:
            found = saves.restore({"w": np.zeros(50, np.float32)})
            step = 0 if found is None else found[1]["epoch"]
            assert step in (returned, returned + 1), "a finished step is lost"
            if found:
                np.testing.assert_array_equal(found[0]["w"], np.full(50, step, np.float32))
            assert saves.warnings == []
            saves.save(step + 1, {"w": np.zeros(50, np.float32)}, {"epoch": step + 1}, best=1)
            kept = saves.steps()
        names = {p.name for p in folder.iterdir()}
        assert names == {n for s in kept for n in (str(s), f"{s}.manifest")}, "leftovers"
        tried, left_behind = tried + 1, left_behind + bool(before - names)
        shutil.rmtree(folder)
    assert tried >= 60
    assert left_behind >= 20  # the kills did hit saves half done
    print(f"{tried} write points, {left_behind} with something half done, 0 finished steps lost")
