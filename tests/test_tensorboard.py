"""What TensorBoard is shown."""

import struct

import pytest
from tensorboardX.proto import event_pb2

from lrlab.tensorboard import Events


def written(folder):
    """{(tag, update): value} of every file, and the updates from which earlier ones are hidden."""
    values, hidden = {}, []
    for path in sorted((folder / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:  # TFRecord: length, its checksum, content, its checksum
            (size,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            values |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
            if event.HasField("session_log"):
                hidden.append(event.step)
    return values, hidden


def test_rows_are_shown_in_groups_that_read_well_and_so_is_the_test(tmp_path):
    events = Events(tmp_path, 0)
    row = {"epoch": 1, "step": 9, "examples": 1152, "lr": 0.5, "batch_size": 128, "seconds": 2.0}
    row |= {"train_loss": None, "val_accuracy": 0.75, "examples_per_second": 1000}
    events.row(row)
    events.row({"event": "skip", "step": 10, "epoch": 2, "lr": 0.5})
    events.row({"event": "final", "step": 18, "test_loss": 0.25, "best_val_loss": 0.5, "a": "b"})
    events.close()
    values, hidden = written(tmp_path)
    assert values == {
        ("examples/seen", 9): 1152,
        ("rate/lr", 9): 0.5,
        ("batch/size", 9): 128,
        ("time/seconds", 9): 2.0,
        ("val/accuracy", 9): 0.75,
        ("examples/per_second", 9): 1000,
        ("test/loss", 18): 0.25,
    }
    assert hidden == [1]


@pytest.mark.parametrize("how", ["resumed", "rolled back"])
def test_what_was_logged_past_a_checkpoint_is_hidden_and_what_it_holds_is_not(tmp_path, how):
    events = Events(tmp_path, 0)
    if how == "resumed":
        events.close()
        events = Events(tmp_path, 9)
    else:
        events.row({"event": "rollback", "step": 20, "to": 9, "lr_scale": 0.5})
    events.close()
    assert written(tmp_path)[1][-1] == 10  # TensorBoard hides this update and later ones
