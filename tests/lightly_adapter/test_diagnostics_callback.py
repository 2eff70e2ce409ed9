"""The callback in runs of a few batches of noise around class patterns."""

import csv
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, Logger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from varcon_plugin.lightly import VarConDiagnosticsCallback, VarConLoss

CLASSES, BATCH = 4, 16


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(8, 8)
        self.criterion = VarConLoss()

    def training_step(self, batch, batch_idx):
        images, labels = batch
        views = (images + 0.1 * torch.randn_like(images) for _ in range(2))
        return self.criterion(*map(self.encoder, views), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Recorder(Logger):
    """Stands for TensorBoard, W&B or MLflow."""

    name = version = "recorder"

    def __init__(self):
        super().__init__()
        self.seen = []

    def log_metrics(self, metrics, step=None):
        self.seen += [(name, step, value) for name, value in metrics.items()]

    def log_hyperparams(self, *args, **kwargs):
        pass

    def steps(self, name):
        return [step for tag, step, _ in self.seen if tag == name]


def batches(classes=CLASSES, batch_size=BATCH, images=64):
    """Four batches of 16, or as many as asked for."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % classes
    patterns = torch.randn(classes, 8, generator=generator)
    images = patterns[labels] + 0.3 * torch.randn(images, 8, generator=generator)
    return DataLoader(TensorDataset(images, labels), batch_size)


def fit(folder, *callbacks, data=None, ckpt_path=None, **options):
    arguments = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": CSVLogger(folder),
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        "callbacks": list(callbacks),
    }
    trainer = Trainer(**{**arguments, **options})
    trainer.fit(Module(), data or batches(), ckpt_path=ckpt_path, weights_only=True)
    return trainer


def measured_steps(folder):
    lines = (folder / "scalars.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_measures_reach_every_logger_with_their_step(tmp_path):
    recorder = Recorder()
    trainer = fit(
        tmp_path,
        VarConDiagnosticsCallback(interval=2, histogram_epochs=2),
        logger=[CSVLogger(tmp_path), recorder],
    )
    assert recorder.steps("varcon/tau2_mean") == [2, 4, 6, 8]
    trainer.loggers[0].save()
    with Path(trainer.log_dir, "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["varcon/loss"]]
    values = [value for tag, _, value in recorder.seen if tag == "varcon/loss"]
    assert [float(row["varcon/loss"]) for row in rows] == pytest.approx(values)


def test_records_lie_in_the_log_dir_or_where_asked_for(tmp_path):
    trainer = fit(tmp_path, VarConDiagnosticsCallback(interval=4, histogram_epochs=2))
    folder = tmp_path / "lightning_logs" / "version_0" / "diagnostics"
    assert str(folder.parent) == trainer.log_dir
    assert sorted(path.name for path in folder.iterdir()) == [
        "epoch_0002.npz", "scalars.jsonl",
    ]  # fmt: skip
    assert measured_steps(folder) == [4, 8]

    elsewhere = tmp_path / "elsewhere"
    fit(tmp_path, VarConDiagnosticsCallback(interval=4, directory=elsewhere))
    assert measured_steps(elsewhere) == [4, 8]
    fit(tmp_path, VarConDiagnosticsCallback(interval=4), logger=False)
    assert measured_steps(tmp_path / "diagnostics") == [4, 8]


def test_the_interval_counts_optimiser_steps(tmp_path):
    callback = VarConDiagnosticsCallback(interval=2, directory=tmp_path)
    fit(tmp_path, callback, accumulate_grad_batches=2)
    assert measured_steps(tmp_path) == [2, 4]


def test_a_healthy_run_is_silent(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, VarConDiagnosticsCallback(interval=1, patience=2))
    assert not [w for w in caught if "VarCon" in str(w) or "classmate" in str(w)]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists:UserWarning")
def test_a_failure_sign_is_one_warning_and_not_repeated_after_a_resume(tmp_path):
    options = {"data": batches(classes=64), "enable_checkpointing": True}
    settings = {"interval": 1, "patience": 2, "directory": tmp_path / "records"}

    def callbacks():
        checkpoint = ModelCheckpoint(tmp_path, filename="last")
        return VarConDiagnosticsCallback(**settings), checkpoint

    with pytest.warns(UserWarning, match="no_classmates: 100% of the images") as caught:
        fit(tmp_path, *callbacks(), max_epochs=1, **options)
    assert len([w for w in caught if "no_classmates" in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "no_classmates")
        fit(tmp_path, *callbacks(), ckpt_path=tmp_path / "last.ckpt", **options)
    assert measured_steps(tmp_path / "records") == list(range(1, 9))


def test_a_module_without_the_loss_is_an_error(tmp_path):
    class Bare(Module):
        def __init__(self):
            super().__init__()
            self.criterion = nn.CrossEntropyLoss()

    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=1,
        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[VarConDiagnosticsCallback()],
    )  # fmt: skip
    with pytest.raises(
        ValueError, match="exactly one VarConLoss in the model, found 0"
    ):
        trainer.fit(Bare(), batches())


def test_a_second_run_in_a_directory_is_a_curve_of_its_own(tmp_path):
    for _ in range(2):
        fit(tmp_path, VarConDiagnosticsCallback(interval=4, directory=tmp_path / "d"))
    assert measured_steps(tmp_path / "d") == [4, 8]
    assert measured_steps(tmp_path / "d_1") == [4, 8]


def test_views_are_counted_and_classes_named(tmp_path):
    data = batches()
    data.dataset.classes = ["ant", "bee", "cat", "dog"]
    callback = VarConDiagnosticsCallback(
        interval=2, histogram_epochs=1, directory=tmp_path
    )
    fit(tmp_path, callback, data=data, max_epochs=1)
    assert callback.monitor.views == 2
    with np.load(tmp_path / "epoch_0001.npz") as stored:
        assert stored["names"].tolist() == data.dataset.classes
