"""The hook in runs of a few iterations on the digits."""

import json
import uuid
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import VISBACKENDS
from mmengine.runner import Runner
from mmengine.visualization import BaseVisBackend
from paths import REPO

from varcon_plugin.mmpretrain.diagnostics_hook import VarConDiagnosticsHook
from varcon_plugin.training.digits import load_digits_split

RECORDED = {}
SIGNS = (
    "one_class", "no_classmates", "collapse", "not_learning", "tau2_stuck",
    "early_confidence",
)  # fmt: skip


@VISBACKENDS.register_module()
class RecordingVisBackend(BaseVisBackend):
    """Stands for TensorBoard, W&B or MLflow: keeps what it is given, by folder."""

    experiment = None

    def _init_env(self):
        pass

    def add_scalars(self, scalar_dict, step=0, file_path=None, **kwargs):
        for name, value in scalar_dict.items():
            RECORDED.setdefault(self._save_dir, []).append((name, step, value))

    def add_scalar(self, name, value, step=0, **kwargs):
        self.add_scalars({name: value}, step)


def configure(work_dir, *, batch_size=16, epochs=2, **hook):
    """Four iterations an epoch."""
    cfg = Config.fromfile(REPO / "configs" / "varcon_r18_digits.py")
    cfg.merge_from_dict(
        {
            "work_dir": str(work_dir),
            "launcher": "none",
            "model.backbone.base_channels": 4,
            "model.backbone.stem_channels": 4,
            "model.neck.in_channels": 32,
            "train_dataloader.batch_size": batch_size,
            "train_dataloader.dataset.indices": 4 * batch_size,
            "train_cfg.max_epochs": epochs,
            "default_hooks.checkpoint.interval": 1,
            "default_hooks.diagnostics": {"type": "VarConDiagnosticsHook", **hook},
            "visualizer.vis_backends": [
                {"type": "LocalVisBackend"},
                {"type": "RecordingVisBackend", "save_dir": str(work_dir)},
            ],
        }
    )
    return cfg


def run(cfg):
    RECORDED.clear()
    cfg.experiment_name = uuid.uuid4().hex  # mmengine's own has a resolution of 1 s
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def recorded(name):
    return [
        (step, value)
        for values in RECORDED.values()
        for tag, step, value in values
        if tag == name
    ]


def log_of(work_dir):
    return "".join(path.read_text() for path in sorted(Path(work_dir).glob("*/*.log")))


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """A run of three epochs that measures every second iteration."""
    work_dir = tmp_path_factory.mktemp("healthy")
    run(configure(work_dir, epochs=3, interval=2, histogram_epochs=[1, 3]))
    scalars = {name: recorded(f"varcon/{name}") for name in ("loss", "tau2_mean")}
    return work_dir, scalars


def test_measures_reach_every_visualiser_with_their_step(healthy):
    work_dir, scalars = healthy
    assert [step for step, _ in scalars["loss"]] == [2, 4, 6, 8, 10, 12]
    assert all(0.08 <= value <= 0.12 for _, value in scalars["tau2_mean"])
    (path,) = work_dir.glob("*/vis_data/scalars.json")
    local = [json.loads(line) for line in path.read_text().splitlines()]
    values = [line["varcon/loss"] for line in local if "varcon/loss" in line]
    assert values == [value for _, value in scalars["loss"]]


def test_records_lie_in_the_work_dir(healthy):
    folder = healthy[0] / "diagnostics"
    assert sorted(path.name for path in folder.iterdir()) == [
        "epoch_0001.npz", "epoch_0003.npz", "scalars.jsonl",
    ]  # fmt: skip
    lines = (folder / "scalars.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 6, 8, 10, 12]


def test_a_healthy_run_is_silent(healthy):
    warnings = [x for x in log_of(healthy[0]).splitlines() if " - WARNING - " in x]
    assert not [x for x in warnings if any(name in x for name in SIGNS)]


def test_a_failure_sign_is_one_warning_and_not_repeated_after_a_resume(tmp_path):
    _, labels = load_digits_split("train")
    one_of_each = [labels.tolist().index(digit) for digit in range(8)]
    settings = {"batch_size": 2, "interval": 1, "patience": 2}
    cfg = configure(tmp_path, epochs=1, **settings)
    cfg.train_dataloader.dataset["indices"] = one_of_each
    run(cfg)
    warning = "no_classmates: 100% of the images have no classmate"
    assert log_of(tmp_path).count(warning) == 1
    cfg.train_cfg.max_epochs, cfg.resume = 2, True
    runner = run(cfg)
    assert runner.iter == 8
    assert [step for step, _ in recorded("varcon/loss")] == [5, 6, 7, 8]
    assert log_of(tmp_path).count(warning) == 1


def test_a_model_without_varcon_loss_is_an_error(tmp_path):
    cfg = configure(tmp_path)
    cfg.model.head.loss = {"type": "CrossEntropyLoss"}
    with pytest.raises(
        ValueError, match="exactly one VarConLoss in the model, found 0"
    ):
        run(cfg)


def test_a_second_run_in_a_folder_is_a_curve_of_its_own(tmp_path):
    for _ in range(2):
        Runner.from_cfg(configure(tmp_path, epochs=1, interval=2)).train()
    for folder in ("diagnostics", "diagnostics_1"):
        lines = (tmp_path / folder / "scalars.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [2, 4]


def test_a_resumed_run_takes_back_what_came_after_its_checkpoint(tmp_path):
    Runner.from_cfg(configure(tmp_path, epochs=2, interval=2)).train()
    cfg = configure(tmp_path, epochs=2, interval=2)
    cfg.load_from, cfg.resume = str(tmp_path / "epoch_1.pth"), True
    Runner.from_cfg(cfg).train()
    lines = (tmp_path / "diagnostics" / "scalars.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 6, 8]


@pytest.mark.parametrize("views", [1, 3])
def test_views_are_counted(tmp_path, views):
    cfg = configure(tmp_path, epochs=1, interval=2)
    steps = cfg.train_dataloader.dataset.pipeline
    (several,) = [step for step in steps if step["type"] == "MultiView"]
    several["num_views"] = views
    runner = Runner.from_cfg(cfg)
    runner.train()
    (hook,) = [h for h in runner.hooks if isinstance(h, VarConDiagnosticsHook)]
    assert hook.monitor.views == views


def test_views_of_crops_of_two_sizes_are_counted(tmp_path):
    """As in the multi-crop recipe: one tensor of views for each size."""
    cfg = configure(tmp_path, epochs=1, interval=2)
    crops = {"type": "TwoCrops", "scale": 16, "small_views": 3, "small_scale": 12}
    cfg.train_dataloader.dataset.pipeline = [crops, {"type": "PackInputs"}]
    cfg.data_preprocessor = {
        "type": "BatchAugmentDataPreprocessor", "mean": [127.5] * 3, "std": [51.0] * 3,
        "to_rgb": False,
    }  # fmt: skip
    runner = Runner.from_cfg(cfg)
    runner.train()
    (hook,) = [h for h in runner.hooks if isinstance(h, VarConDiagnosticsHook)]
    assert hook.monitor.views == 5


def test_the_classes_of_the_dataset_name_the_references(healthy):
    with np.load(healthy[0] / "diagnostics" / "epoch_0001.npz") as stored:
        names = [str(label) for label in stored["classes"]]
        assert stored["names"].tolist() == names
