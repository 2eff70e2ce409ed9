"""Trainings that are signalled, killed, moved and resumed through tools/train.py."""

import os
import re
import resource
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import signal_at
import torch
from mmengine.config import Config
from paths import REPO

from varcon_plugin.checkpoints.ownership import owned
from varcon_plugin.commands.attacks.durability import living
from varcon_plugin.mmpretrain import durability, launch
from varcon_plugin.mmpretrain.durable_checkpoints import AtomicLocalBackend

SMALL = """
_base_ = {base!r}
custom_imports = dict(imports=["varcon_plugin.mmpretrain", "signal_at"])
model = dict(
    backbone=dict(base_channels=4, stem_channels=4),
    neck=dict(in_channels=32, hid_channels=16, out_channels=16),
)
train_dataloader = dict(batch_size=6, dataset=dict(indices=24))
train_cfg = dict(max_epochs=3)
default_hooks = dict(checkpoint=dict(interval=1), logger=dict(interval=1))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=1, end=3),
]
custom_hooks = {hooks}
"""
STEPS = 4  # batches an epoch


@pytest.fixture
def train(tmp_path, monkeypatch):
    """``train(*arguments, hooks=...)``: the exit code and what mmengine says."""

    def run(*arguments, hooks=(), options=(), name="run"):
        config = tmp_path / "small.py"
        base = str(REPO / "configs" / "varcon_r18_digits.py")
        config.write_text(SMALL.format(base=base, hooks=list(hooks)))
        folder = tmp_path / name
        command = ["train.py", config, "--work-dir", folder, *arguments]
        command += ["--cfg-options", *options] if options else []
        monkeypatch.setattr(sys, "argv", [str(part) for part in command])
        try:
            launch.main("train")
        except SystemExit as stopped:
            return stopped.code
        return 0

    return run


def state(folder, name):
    content = torch.load(Path(folder, name), weights_only=False)
    optimizer = content["optimizer"]["state"]
    momenta = {f"momentum {n}": s["momentum_buffer"] for n, s in optimizer.items()}
    return content["state_dict"] | momenta


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


WORKERS = (
    "train_dataloader.num_workers=2",
    "train_dataloader.persistent_workers=True",
)
BANK = (
    "model.head.loss.num_classes=None",
    "model.head.loss.centroids.type=MomentumCentroids",
    "model.head.loss.centroids.num_classes=10",
    "model.head.loss.centroids.dim=16",
    "model.head.loss.centroids.num_negatives=4",
)


# the check before a run shows a bank two images
@pytest.mark.filterwarnings("ignore:VarConLoss is 0 with gradient 0:UserWarning")
@pytest.mark.parametrize(
    ("step", "number", "options"),
    [
        (6, signal.SIGTERM, ()),
        (2 * STEPS, signal.SIGUSR1, WORKERS + BANK),  # the last of an epoch
    ],
    ids=["within an epoch", "end of an epoch, workers, bank"],
)
def test_signalled_and_resumed_equals_uninterrupted(
    train, tmp_path, capfd, step, number, options
):
    assert train(name="whole", options=options) == 0
    at = [{"type": "SignalAt", "step": step, "number": int(number)}]
    assert train(hooks=at, options=options) == 75
    assert (tmp_path / "run" / f"interrupted_iter_{step}.pth").is_file()
    assert not (tmp_path / "run" / "epoch_3.pth").exists()
    assert train("--resume", options=options) == 0
    said = capfd.readouterr().out
    assert f"Resuming from {tmp_path}/run/interrupted_iter_{step}.pth" in said
    assert "Going on within epoch 2, after batch" in said
    names = ("whole", "run")
    assert_equal(*(state(tmp_path / name, "epoch_3.pth") for name in names))
    assert not list((tmp_path / "run").glob("interrupted*"))
    assert not list((tmp_path / "run").glob(".*.tmp"))
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_resumed_from_an_epoch_equals_uninterrupted(train, tmp_path):
    assert train(name="whole") == 0
    assert train(options=["train_cfg.max_epochs=2"]) == 0
    assert train("--resume") == 0
    names = ("whole", "run")
    assert_equal(*(state(tmp_path / name, "epoch_3.pth") for name in names))


def test_another_batch_size_repeats_the_epoch_and_says_so(train, tmp_path, capfd):
    assert train(hooks=[{"type": "SignalAt", "step": 2}]) == 75
    assert train("--resume", options=["train_dataloader.batch_size=8"]) == 0
    said = capfd.readouterr().out
    assert (
        "Repeating epoch 1 from its start: 2 of its batches were trained on by "
        "1 processes, 4 batches each; now 1 processes, 3 batches each." in said
    )


# of mmengine, whose schedulers step with every batch
@pytest.mark.filterwarnings("ignore:Detected call of .scheduler.step:UserWarning")
def test_with_accumulation_the_stop_waits_for_the_step_of_the_optimiser(
    train, tmp_path
):
    options = ["optim_wrapper.accumulative_counts=4"]
    assert train(hooks=[{"type": "SignalAt", "step": 2}], options=options) == 75
    assert (tmp_path / "run" / "interrupted_iter_4.pth").is_file()


@pytest.fixture
def finished(train, tmp_path):
    """A work_dir with three epochs, the last two kept."""
    assert train(options=["default_hooks.checkpoint.max_keep_ckpts=2"]) == 0
    return tmp_path / "run"


def test_files_of_a_run_that_is_damaged_moved_and_pointed_to_wrongly(
    finished, train, tmp_path, capfd
):
    assert sorted(p.name for p in finished.glob("*.pth")) == [
        "epoch_2.pth",
        "epoch_3.pth",
    ]
    said = train()
    assert "holds a run already (epoch_3.pth): add --resume" in said

    finished.rename(tmp_path / "moved")
    moved = tmp_path / "moved"
    last = moved / "epoch_3.pth"
    last.write_bytes(last.read_bytes()[:-1000])
    longer = ["train_cfg.max_epochs=4"]
    for pointer in ("", str(finished / "epoch_3.pth"), None):
        if pointer is None:
            (moved / "last_checkpoint").unlink()
        else:
            (moved / "last_checkpoint").write_text(pointer)
        cfg = Config({"work_dir": str(moved), "resume": True})
        durability.choose_checkpoint(cfg, speak=True)
        assert cfg.load_from == str(moved / "epoch_2.pth")
    said = capfd.readouterr().out
    assert "the newest whole checkpoint; epoch_3.pth: it is cut short" in said
    assert train("--resume", options=longer, name="moved") == 0
    assert (moved / "epoch_4.pth").is_file()

    for path in moved.glob("*.pth"):
        os.truncate(path, 10)
    said = train("--resume", name="moved")
    assert "holds no whole checkpoint; epoch_" in said
    assert "\n" not in said


HOLD = """
import sys, time
from varcon_plugin.checkpoints.ownership import owned
from varcon_plugin.commands.attacks.durability import living
with owned(sys.argv[1]):
    print(flush=True)
    time.sleep(100)
"""


def test_a_second_run_in_a_work_dir_is_refused_in_one_line(train, tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", HOLD, folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        said = train("--resume")
        process.kill()
    assert f"{folder} is in use by process {process.pid} on" in said
    assert "\n" not in said
    assert [p.name for p in folder.iterdir()] == [".owner"]
    with owned(folder):
        pass


def test_a_place_that_cannot_be_written_is_told_in_one_line(train, tmp_path):
    (tmp_path / "run").touch()
    said = train()
    assert said.startswith("train.py: work_dir")
    assert "cannot be written: File exists" in said


def test_a_full_disk_ends_the_run_in_one_line_and_keeps_the_last_checkpoint(
    train, tmp_path, monkeypatch
):
    put = AtomicLocalBackend.put

    def full(self, obj, filepath):
        if "epoch_2" in str(filepath):
            obj = memoryview(obj)  # and the disk is full after a part of it
            limit = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(obj) // 2, limit[1]))
            try:
                put(self, obj, filepath)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        put(self, obj, filepath)

    monkeypatch.setattr(AtomicLocalBackend, "put", full)
    said = train(options=["default_hooks.checkpoint.max_keep_ckpts=1"])
    folder = tmp_path / "run"
    assert said == f"train.py: cannot write {folder}/epoch_2.pth: File too large"
    assert [p.name for p in folder.glob("*.pth")] == ["epoch_1.pth"]
    assert not list(folder.glob(".*.tmp"))


RECIPES = (  # of each kind
    "varcon_r18_digits.py",
    "varcon_r18_digits_linear.py",
    "varcon_r50_cifar100.py",
    "varcon_r50_imagenet.py",
    "baselines/ce_r18_image_folder.py",
)


def test_every_recipe_gets_durable_checkpoints_and_seeds():
    recipes = [REPO / "configs" / name for name in RECIPES]
    for path in recipes:
        cfg = Config.fromfile(path)
        hooks = []
        durability.add_hooks(cfg, hooks)
        types = [hook["type"] for hook in (*hooks, *cfg.default_hooks.values())]
        assert cfg.default_hooks.checkpoint.type == "mmpretrain.DurableCheckpointHook"
        for name in ("EpochSeedHook", "StopHook"):
            assert sum(kind.endswith(name) for kind in types) == 1, path
        assert cfg.train_cfg.type == "ResumableEpochLoop", path


def test_the_work_dir_is_held_only_while_it_trains(train, tmp_path):
    with ExitStack() as held:
        durability.hold(str(tmp_path / "run"), held)
    assert train(options=["train_cfg.max_epochs=1"]) == 0


def dist_train(tmp_path, name, *arguments, hooks=()):
    config = tmp_path / f"{name}.py"
    base = str(REPO / "configs" / "varcon_r18_digits.py")
    config.write_text(SMALL.format(base=base, hooks=list(hooks)))
    here = Path(signal_at.__file__).parent
    command = [
        *("bash", REPO / "tools" / "dist_train.sh", config, 2),
        *("--work-dir", tmp_path / name, *arguments),
    ]
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    modules = os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [str(part) for part in command],
        env=os.environ | {"PATH": search, "PYTHONPATH": modules},
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """What two processes end with that nobody interrupts."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = dist_train(folder, "whole")
    assert done.returncode == 0, done.stdout + done.stderr
    return state(folder / "whole", "epoch_3.pth")


def test_two_processes_stop_by_a_signal_to_their_launcher_and_go_on(
    uninterrupted, tmp_path
):
    at = [{"type": "SignalAt", "step": 3, "launcher": True, "number": 15}]
    stopped = dist_train(tmp_path, "part", hooks=at)
    assert stopped.returncode == 75, stopped.stdout + stopped.stderr
    assert "Traceback" not in stopped.stdout + stopped.stderr
    (saved,) = (tmp_path / "part").glob("interrupted_iter_*.pth")
    resumed = dist_train(tmp_path, "part", "--resume")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert re.search(rf"Resuming from \S+{saved.name} .step", resumed.stdout)
    assert_equal(state(tmp_path / "part", "epoch_3.pth"), uninterrupted)


@pytest.mark.skipif(sys.platform != "linux", reason="a promise of Linux's kernel")
def test_two_processes_end_with_their_killed_launcher_and_another_goes_on(
    uninterrupted, tmp_path
):
    at = [{"type": "SignalAt", "step": 4, "launcher": True, "number": 9}]
    killed = dist_train(tmp_path, "part", hooks=at)
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    assert living(tmp_path / "part") == []
    resumed = dist_train(tmp_path, "part", "--resume")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert re.search(r"Resuming from \S+epoch_1.pth .step", resumed.stdout)
    assert_equal(state(tmp_path / "part", "epoch_3.pth"), uninterrupted)
