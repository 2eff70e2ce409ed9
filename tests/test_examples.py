"""Every example trains on a small folder of images, as its first lines say."""

import os
import re
import runpy
import subprocess
import sys

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from paths import REPO
from PIL import Image

EXAMPLES = REPO / "examples"
SHORT = ["--size", "32", "--epochs", "1", "--batch-size", "8"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two colours, twelve JPEGs of each: train/<class>/*."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for name, colour in (("blue", (0, 0, 160)), ("red", (160, 0, 0))):
        folder = root / "train" / name
        folder.mkdir(parents=True)
        for index in range(12):
            pixels = random.integers(0, 90, (48, 40, 3)) + np.array(colour)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.jpg")
    return root


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """``run(example, *arguments)``: what it printed, run in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def execute(example, *arguments):
        path = EXAMPLES / example
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out

    return execute


@pytest.mark.parametrize(
    "example", ["pytorch/folder.py", "pytorch/fabric.py", "pytorch/timm_backbone.py"]
)
def test_on_a_folder_of_images(run, images, example):
    shown = run(example, images / "train", *SHORT)
    (loss,) = re.findall(r"epoch: 00, loss.*: (\S+)", shown)
    assert 0 < float(loss) < 2


def test_a_bank_in_a_training_loop_learns(run, tmp_path):
    shown = run("pytorch/bank.py", "--epochs", "3")
    shares = [float(share) for share in re.findall(r"reference: (\S+)%", shown)]
    assert len(shares) == 3
    assert shares[-1] > 90
    assert (tmp_path / "run.pt").is_file()


def test_without_labels_latent_classes_come_near_the_digits(run):
    shown = run("pytorch/without_labels.py", "--epochs", "3")
    scores = [float(score) for score in re.findall(r"labels: (\S+)", shown)]
    assert len(scores) == 3
    assert scores[-1] > 0.4
    assert re.findall(r"in use: (\d+) of 30", shown)[-1] == "30"


def test_ddp_on_two_processes(images, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc-per-node", "2", EXAMPLES / "pytorch" / "ddp.py"]
    done = subprocess.run(
        [*command, images / "train", *SHORT],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )
    assert done.returncode == 0, done.stderr
    assert "epoch: 00, loss on rank 0" in done.stdout
    assert (tmp_path / "model.pth").is_file()


@pytest.mark.filterwarnings("default")  # of transformers, in its own code
def test_the_trainer_of_hugging_face(run, images, tmp_path):
    shown = run(
        "huggingface/trainer.py", images / "train", *SHORT, "--out", tmp_path / "hf"
    )
    assert "train_loss" in shown
    assert (tmp_path / "hf" / "config.json").is_file()


def test_a_config_outside_the_repository(images, tmp_path):
    config = tmp_path / "mine.py"
    source = EXAMPLES / "mmpretrain" / "varcon_on_my_images.py"
    config.write_text(source.read_text().replace("scale=224", "scale=32"))
    options = [
        f"train_dataloader.dataset.data_root={images}",
        "train_dataloader.batch_size=8",
        "train_dataloader.num_workers=0",
        "train_dataloader.persistent_workers=False",
        "model.backbone.depth=18",
        "model.neck.in_channels=512",
        "train_cfg.max_epochs=1",
    ]
    done = subprocess.run(
        [sys.executable, REPO / "tools/train.py", config, "--cfg-options", *options],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "work_dirs/mine/epoch_1.pth").is_file()


def test_the_notebook_trains_evaluates_and_draws():
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("EPOCHS = 20", "EPOCHS = 4")
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    shown = "".join(output.get("data", {}).get("text/plain", "") for output in outputs)
    accuracies = re.findall(r"k-NN (\S+) %, linear (\S+) %", shown)
    assert all(float(accuracy) > 80 for accuracy in accuracies[0])
