"""The pictures, from records that the monitor wrote."""

import json
import sys

import matplotlib.image
import pytest
import torch

from varcon_plugin import VarConLoss
from varcon_plugin.commands import plot as tool
from varcon_plugin.health.monitor import DiagnosticsMonitor

PICTURES = ["centroids", "confidence", "geometry", "loss", "tau2"]


@pytest.fixture
def plot(monkeypatch, capsys):
    """``plot(folder)``: what the tool prints."""

    def run(folder):
        argv = ["plot_diagnostics.py", str(folder), "--dpi", "30"]
        monkeypatch.setattr(sys, "argv", argv)
        tool.main()
        return capsys.readouterr().out

    return run


def record(folder, *, epochs, epsilon=0.02, labels=None, classes=()):
    """A run of two steps an epoch on noise."""
    torch.manual_seed(0)
    loss = VarConLoss(0.1, epsilon)
    monitor = DiagnosticsMonitor(
        loss, folder, interval=1, histogram_epochs=1, views=1, classes=classes
    )
    labels = torch.arange(12) % 4 if labels is None else labels
    for epoch in range(1, epochs + 1):
        for step in (2 * epoch - 1, 2 * epoch):
            monitor.begin_step(step, epoch)
            loss(torch.randn(len(labels), 8), labels)
            monitor.end_step()
        monitor.end_epoch(epoch)


def test_every_run_below_the_folder_gets_its_pictures(plot, tmp_path):
    folders = [tmp_path / "version_0" / "diagnostics", tmp_path / "b" / "diagnostics"]
    record(folders[0], epochs=20)
    record(folders[1], epochs=1)
    assert plot(tmp_path).count("epoch  tau2 mean") == 2
    for folder in folders:
        assert sorted(path.stem for path in folder.glob("*.png")) == PICTURES
        for path in folder.glob("*.png"):
            picture = matplotlib.image.imread(path)
            assert picture[..., :3].std() > 0.05, f"{path} is blank"


@pytest.mark.parametrize("odd", [{"epsilon": 0.0}, {"labels": torch.arange(12)}])
def test_records_without_a_range_or_without_classmates_are_drawn(plot, tmp_path, odd):
    record(tmp_path, epochs=2, **odd)
    assert plot(tmp_path).count(".png") == 5


@pytest.mark.parametrize("names", [(), ("ant", "bee", "cat", "dog")])
def test_the_heat_map_names_the_classes_where_they_have_names(names, tmp_path):
    record(tmp_path, epochs=1, classes=names)
    figure = tool.centroids_figure(tool.load(tmp_path))
    for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
        shown = [label.get_text() for label in axis.get_ticklabels()]
        assert shown == [*(names or "0123")]


def test_a_run_of_one_measured_step_shows_its_points(tmp_path):
    record(tmp_path, epochs=1)
    path = tmp_path / "scalars.jsonl"
    path.write_text(path.read_text().splitlines()[0])
    figure = tool.figures(tool.load(tmp_path))["loss"]
    assert all(line.get_marker() == "o" for line in figure.axes[0].lines)
    ticks = figure.axes[0].get_xticks()
    assert [tick for tick in ticks if tick == int(tick)] == [*ticks]


def test_without_stored_epochs_the_curves_remain(plot, tmp_path):
    record(tmp_path, epochs=2)
    for path in tmp_path.glob("*.npz"):
        path.unlink()
    assert "centroids.png needs stored epochs" in plot(tmp_path)
    assert sorted(path.stem for path in tmp_path.glob("*.png")) == PICTURES[1:]


def test_steps_that_a_resumed_run_measured_again_count_once(tmp_path):
    lines = [{"step": s, "loss": v} for s, v in ((1, 4), (2, 3), (3, 9), (2, 7))]
    (tmp_path / "scalars.jsonl").write_text("\n".join(map(json.dumps, lines)))
    scalars = tool.load(tmp_path).scalars
    assert scalars["step"].tolist() == [1, 2, 3]
    assert scalars["loss"].tolist() == [4, 7, 9]


def test_a_folder_without_records_is_an_error_that_says_what_to_do(plot, tmp_path):
    with pytest.raises(SystemExit, match="train with VarConDiagnosticsHook"):
        plot(tmp_path)


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("scalars.jsonl", lambda content: content[:-9]),
        ("scalars.jsonl", lambda content: b""),
        ("scalars.jsonl", lambda content: b"[1]\n" + content),
        ("epoch_0002.npz", lambda content: content[:-40]),
        ("epoch_0002.npz", lambda content: b""),
        ("epoch_0002.npz", lambda content: content[:200] + b"\0" + content[201:]),
    ],
)
def test_a_damaged_record_is_named_in_one_line(name, harm, plot, tmp_path):
    record(tmp_path, epochs=2)
    path = tmp_path / name
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(SystemExit) as stopped:
        plot(tmp_path)
    said = str(stopped.value.code)
    assert said.startswith(f"plot_diagnostics.py: {path} is damaged (")
    assert "\n" not in said
