"""tools/train_lightly.py, signalled, damaged and resumed."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from pytorch_lightning import Callback

from varcon_plugin.commands import train_lightly
from varcon_plugin.lightly.durability import DurableCheckpointIO

pytestmark = pytest.mark.filterwarnings(
    "ignore:Checkpoint directory .* exists and is not empty:UserWarning",
    "ignore:The dirpath has changed from:UserWarning",
)
STEPS = 3  # of an epoch, on one process


class Signal(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def train(image_folder, tmp_path, monkeypatch):
    """``train(name, *flags, signal_at=)``: the exit code or message."""
    monkeypatch.setattr(train_lightly, "evaluate", lambda *_: None)
    create = train_lightly.create_trainer

    def run(name, *flags, signal_at=None):
        def create_trainer(args, sampler):
            trainer = create(args, sampler)
            if signal_at is not None:
                trainer.callbacks.append(Signal(signal_at))
            return trainer

        monkeypatch.setattr(train_lightly, "create_trainer", create_trainer)
        arguments = [
            *("--data", str(image_folder), "--image-size", "32"),
            *("--backbone", "test_resnet", "--batch-size-per-device", "8"),
            *("--epochs", "3", "--accelerator", "cpu", "--centroid-momentum", "0.9"),
            *("--val-interval", "4", "--output-dir", str(tmp_path / name), *flags),
        ]
        try:
            train_lightly.main(arguments)
        except SystemExit as stopped:
            return stopped.code
        return 0

    return run


def state(folder):
    path = folder / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    assert content["epoch"] == 2
    momenta = content["optimizer_states"][0]["state"]
    return content["state_dict"] | {n: s["momentum_buffer"] for n, s in momenta.items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize(("step", "workers"), [(5, "0"), (2, "2")])
def test_signalled_and_resumed_equals_uninterrupted(train, tmp_path, step, workers):
    flags = ("--num-workers", workers)
    assert train("whole", *flags) == 0
    assert train("part", *flags, signal_at=step) == 75
    folder = tmp_path / "part" / "checkpoints"
    assert (folder / f"interrupted-step={step}.ckpt").is_file()
    assert train("part", *flags, "--resume") == 0
    assert_equal(state(tmp_path / "whole"), state(tmp_path / "part"))
    assert not list(folder.glob("interrupted*"))


def test_a_signal_in_the_last_step_of_an_epoch_waits_for_its_checkpoint(
    train, tmp_path
):
    assert train("whole") == 0
    assert train("part", signal_at=STEPS) == 75
    assert train("part", "--resume") == 0
    assert_equal(state(tmp_path / "whole"), state(tmp_path / "part"))


def test_resumed_from_an_epoch_damaged_and_moved(train, tmp_path):
    assert train("whole") == 0
    assert train("part", signal_at=2 * STEPS + 1) == 75
    folder = tmp_path / "part" / "checkpoints"
    (interrupted,) = folder.glob("interrupted*")
    interrupted.write_bytes(interrupted.read_bytes()[:-100])
    (folder / "last.ckpt").unlink()
    (folder / "last.ckpt").symlink_to("gone.ckpt")
    assert "holds a run already" in train("part")
    (tmp_path / "part").rename(tmp_path / "moved")
    assert train("moved", "--resume") == 0
    assert_equal(state(tmp_path / "whole"), state(tmp_path / "moved"))


def test_nothing_whole_to_resume_from_is_one_line(train, tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "last.ckpt").touch()
    said = train("run", "--resume")
    assert "holds no whole checkpoint; last.ckpt: it is empty" in said
    assert "\n" not in said


def test_a_full_disk_keeps_the_last_checkpoint_and_is_one_line(
    train, tmp_path, monkeypatch
):
    write = DurableCheckpointIO.save_checkpoint

    def full(self, checkpoint, path, storage_options=None):
        if "0001" in str(path):
            (tmp_path / "file").touch()
            path = tmp_path / "file" / "epoch.ckpt"
        write(self, checkpoint, path, storage_options)

    monkeypatch.setattr(DurableCheckpointIO, "save_checkpoint", full)
    said = train("run")
    assert "cannot write" in said
    assert "\n" not in said
    names = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["epoch=0000.ckpt", "last.ckpt"]


SCRIPT = """
import os, signal
from varcon_plugin.commands import train_lightly
from varcon_plugin.lightly.durability import StopAndGoOn

start = StopAndGoOn.on_train_batch_start

def start_and_signal(self, trainer, *rest):
    if trainer.global_step == 1 and trainer.is_global_zero:
        os.kill(os.getpid(), signal.SIGUSR1)
    start(self, trainer, *rest)

if "STOP" in os.environ:
    StopAndGoOn.on_train_batch_start = start_and_signal
train_lightly.evaluate = lambda *_: None
train_lightly.main()
"""


def test_two_processes_stop_together_and_go_on(image_folder, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)

    def start(name, *flags, **environment):
        command = [
            *(sys.executable, script, "--data", image_folder, "--image-size", "32"),
            *("--backbone", "test_resnet", "--batch-size-per-device", "4"),
            *("--epochs", "3", "--accelerator", "cpu", "--val-interval", "4"),
            *("--devices", "2", "--output-dir", tmp_path / name, *flags),
        ]
        return subprocess.run(
            [str(part) for part in command],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=280,
        )

    whole = start("whole")
    assert whole.returncode == 0, whole.stderr
    stopped = start("part", STOP="1")
    assert stopped.returncode == 75, stopped.stderr
    assert "Traceback" not in stopped.stderr
    resumed = start("part", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "Going on within epoch 1, after batch 2" in resumed.stderr
    assert_equal(state(tmp_path / "whole"), state(tmp_path / "part"))
