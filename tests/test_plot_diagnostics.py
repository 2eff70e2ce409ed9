"""The pictures, from records that the monitor wrote."""

import json
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest
import torch

from varcon_plugin import VarConLoss
from varcon_plugin.monitor import DiagnosticsMonitor

TOOL = Path(__file__).parents[1] / "tools" / "plot_diagnostics.py"
PICTURES = ["centroids", "confidence", "geometry", "loss", "tau2"]


def plot(folder):
    command = [sys.executable, "-W", "error", str(TOOL), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def record(folder, *, epochs, epsilon=0.02, labels=None):
    """A run of two steps an epoch on noise."""
    torch.manual_seed(0)
    loss = VarConLoss(0.1, epsilon)
    monitor = DiagnosticsMonitor(loss, folder, interval=1, histogram_epochs=1, views=1)
    labels = torch.arange(12) % 4 if labels is None else labels
    for epoch in range(1, epochs + 1):
        for step in (2 * epoch - 1, 2 * epoch):
            monitor.begin_step(step, epoch)
            loss(torch.randn(len(labels), 8), labels)
            monitor.end_step()
        monitor.end_epoch(epoch)


def test_every_run_below_the_folder_gets_its_pictures(tmp_path):
    folders = [tmp_path / "version_0" / "diagnostics", tmp_path / "b" / "diagnostics"]
    record(folders[0], epochs=20)
    record(folders[1], epochs=1)
    done = plot(tmp_path)
    assert done.stderr == ""
    assert done.stdout.count("epoch  tau2 mean") == 2
    for folder in folders:
        assert sorted(path.stem for path in folder.glob("*.png")) == PICTURES
        for path in folder.glob("*.png"):
            picture = matplotlib.image.imread(path)
            assert picture[..., :3].std() > 0.05, f"{path} is blank"


@pytest.mark.parametrize("odd", [{"epsilon": 0.0}, {"labels": torch.arange(12)}])
def test_records_without_a_range_or_without_classmates_are_drawn(tmp_path, odd):
    record(tmp_path, epochs=2, **odd)
    done = plot(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_stored_epochs_the_curves_remain(tmp_path):
    record(tmp_path, epochs=2)
    for path in tmp_path.glob("*.npz"):
        path.unlink()
    done = plot(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "centroids.png needs stored epochs" in done.stdout
    assert sorted(path.stem for path in tmp_path.glob("*.png")) == PICTURES[1:]


def test_steps_that_a_resumed_run_measured_again_count_once(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(TOOL.parent))
    from plot_diagnostics import load

    lines = [{"step": s, "loss": v} for s, v in ((1, 4), (2, 3), (3, 9), (2, 7))]
    (tmp_path / "scalars.jsonl").write_text("\n".join(map(json.dumps, lines)))
    scalars = load(tmp_path).scalars
    assert scalars["step"].tolist() == [1, 2, 3]
    assert scalars["loss"].tolist() == [4, 7, 9]


def test_a_folder_without_records_is_an_error_that_says_what_to_do(tmp_path):
    done = plot(tmp_path)
    assert done.returncode == 1
    assert "train with VarConDiagnosticsHook" in done.stderr
