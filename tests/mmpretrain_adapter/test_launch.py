"""The launchers, as users start them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from paths import REPO

from varcon_plugin.mmpretrain import launch

DIGITS = "configs/varcon_r18_digits.py"
SHORT = ("train_cfg.max_epochs=1", "train_dataloader.batch_size=64")


def start(*command, **environment):
    """A process of ours; PATH finds this interpreter first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=REPO,
        env=os.environ | {"PATH": path} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def test_two_processes_train_on_the_cpu_and_resume(tmp_path):
    command = ("bash", "tools/dist_train.sh", DIGITS, 2, "--work-dir", tmp_path)
    code, output = finish(start(*command, "--cfg-options", *SHORT))
    assert code == 0, output
    assert re.search(r"Epoch\(train\) \[1\]\[10/10\].* loss: .* kl: .* nll: ", output)
    longer = ("train_cfg.max_epochs=2", *SHORT[1:])
    code, output = finish(start(*command, "--resume", "--cfg-options", *longer))
    assert code == 0, output
    assert "resumed epoch: 1, iter: 10" in output
    assert (tmp_path / "epoch_2.pth").exists()


def test_two_nodes_train_as_one_job(tmp_path):
    nodes = [
        start(
            "bash", "tools/dist_train.sh", DIGITS, 1, "--work-dir", tmp_path,
            "--cfg-options", *SHORT,
            NNODES="2", NODE_RANK=str(rank), MASTER_ADDR="127.0.0.1", PORT="29713",
        )
        for rank in range(2)
    ]  # fmt: skip
    (code, output), (other_code, other) = (finish(node) for node in nodes)
    assert (code, other_code) == (0, 0), output + other
    assert "GPU number: 2" in output
    assert "[1][10/10]" in output  # 1,347 images in steps of 2 x 64


def run_main(name, monkeypatch, *arguments):
    """What ``tools/<name>.py --check`` says."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments), "--check"])
    monkeypatch.chdir(REPO)
    with pytest.raises(SystemExit) as stopped:
        launch.main(name)
    return stopped.value.code


def test_a_good_command_passes_the_checks(monkeypatch, tmp_path):
    assert not run_main("train", monkeypatch, DIGITS, "--work-dir", tmp_path)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("train", ["configs/nope.py"], "config not found: configs/nope.py"),
        (
            "train",
            [
                "configs/varcon_r50_imagenet.py",
                "--cfg-options",
                "train_dataloader.dataset.data_root=/nowhere",
            ],
            "data folder not found: /nowhere/train",
        ),
        (
            "train",
            ["configs/varcon_r18_digits_linear.py"],
            "model.backbone.init_cfg.checkpoint is not set",
        ),
        (
            "test",
            ["configs/varcon_r18_digits_linear.py", "nope.pth"],
            "checkpoint not found: nope.pth",
        ),
        ("test", [DIGITS, DIGITS], "has no test_dataloader"),
        (
            "test",
            ["configs/varcon_r18_digits_linear.py", DIGITS],
            "cannot be loaded safely",
        ),
    ],
)
def test_a_mistake_is_told_in_one_line(name, arguments, message, monkeypatch):
    said = run_main(name, monkeypatch, *arguments)
    assert said.startswith(f"{name}.py: ")
    assert message in said
    assert "\n" not in said


def test_a_checkpoint_of_another_model_is_refused(monkeypatch, tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"state_dict": torch.nn.Linear(2, 2).state_dict()}, path)
    linear = "configs/varcon_r18_digits_linear.py"
    said = run_main("test", monkeypatch, linear, path)
    assert "is of another model; missing: backbone.conv1.weight" in said
    assert "unexpected: bias, weight" in said
    option = f"model.backbone.init_cfg.checkpoint={path}"
    said = run_main("train", monkeypatch, linear, "--cfg-options", option)
    assert "is of another model; missing: backbone.conv1.weight" in said


@pytest.mark.parametrize("gpus", ["two", "0", "-1", "1.5"])
def test_a_gpu_count_that_is_no_number_is_refused(gpus):
    code, output = finish(start("bash", "tools/dist_train.sh", DIGITS, gpus))
    assert code == 2
    assert output == (
        f"GPUS must be a positive number (processes per node), got: {gpus}\n"
    )


@pytest.mark.parametrize("script", ["dist_train", "dist_test", "slurm_train"])
def test_missing_arguments_show_the_usage(script):
    code, output = finish(start("bash", f"tools/{script}.sh"))
    assert code != 0
    assert f"usage: {script}.sh " in output
