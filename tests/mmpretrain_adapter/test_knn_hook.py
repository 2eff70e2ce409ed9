import re
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from conftest import REPO
from mmengine.config import Config
from mmengine.runner import Runner
from test_launch import finish, start

from varcon_plugin.evaluation.images import ImageDataset
from varcon_plugin.evaluation.knn import knn_accuracy
from varcon_plugin.mmpretrain.evaluation import load_encoder, load_splits
from varcon_plugin.mmpretrain.knn_hook import KNNHook

DIGITS = REPO / "configs" / "varcon_r18_digits.py"
LINEAR = REPO / "configs" / "varcon_r18_digits_linear.py"
PIPELINE = [{"type": "Resize", "scale": 16}, {"type": "PackInputs"}]
BANK = {"type": "Digits", "split": "train", "pipeline": PIPELINE, "indices": 200}
TEST = {"type": "Digits", "split": "test", "pipeline": PIPELINE}


def digits_config(work_dir, hooks=(), epochs=2):
    """The digits recipe on its first 256 images."""
    cfg = Config.fromfile(DIGITS)
    cfg.work_dir = str(work_dir)
    cfg.train_dataloader.dataset.indices = 256
    cfg.train_cfg.max_epochs = epochs
    cfg.custom_hooks = list(hooks)
    cfg.default_hooks.checkpoint.interval = 1
    cfg.log_level = "ERROR"
    cfg.experiment_name = f"{work_dir.name}-{len(cfg.custom_hooks)}"
    return cfg


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with the hook every other epoch, and one without."""
    found = []
    for hooks in ([{"type": "KNNHook", "bank": BANK, "test": TEST, "interval": 2}], []):
        work_dir = tmp_path_factory.mktemp("run")
        runner = Runner.from_cfg(digits_config(work_dir, hooks, epochs=3))
        runner.train()
        found.append(runner)
    return found


def test_training_goes_on_as_without_the_hook(runs):
    with_hook, without = (runner.model.state_dict() for runner in runs)
    for name, value in without.items():
        assert torch.equal(with_hook[name], value), name
    assert all(module.training for module in runs[0].model.modules())


def test_values_are_those_of_the_checkpoint(runs):
    runner = runs[0]
    scalars = runner.message_hub.get_scalar("knn/top1").data[0]
    assert len(scalars) == 2  # after epoch 2, and after the last
    for epoch, logged in zip((2, 3), scalars, strict=True):
        path = f"{runner.work_dir}/epoch_{epoch}.pth"
        encoder = load_encoder(LINEAR, Path(path))
        splits = load_splits(LINEAR)
        split = []
        for images, count in ((splits.train, 200), (splits.test, 450)):
            dataset = ImageDataset(images.items[:count], encoder.transform)
            with torch.no_grad():
                split.append(encoder.module.eval()(torch.stack([*dataset])))
            split.append(images.labels[:count])
        expected = knn_accuracy(*split, ks=[20], temperatures=[0.07])[20, 0.07]
        assert logged == pytest.approx(expected.top1)


def test_visualisers_get_the_values(runs):
    (log,) = type(REPO)(runs[0].work_dir).glob("*/vis_data/scalars.json")
    steps = re.findall(
        r'{"knn/top1": [\d.]+, "knn/top5": [\d.]+, "step": (\d)}', log.read_text()
    )
    assert steps == ["2", "3"]


def test_two_ranks_use_the_model_of_the_first(tmp_path):
    """Whose BatchNorm statistics the checkpoint holds; each rank keeps its own."""
    hook = {"type": "KNNHook", "bank": BANK, "test": TEST}
    cfg = digits_config(tmp_path, [hook], epochs=1)
    cfg.log_level = "INFO"
    cfg.dump(tmp_path / "config.py")
    command = ("bash", "tools/dist_train.sh", tmp_path / "config.py", 2)
    code, output = finish(start(*command, OMP_NUM_THREADS="1"))
    assert code == 0, output
    logged = re.findall(r"Epoch 1: k-NN top-1 ([\d.]+) %", output)
    encoder = load_encoder(LINEAR, tmp_path / "epoch_1.pth")
    splits = load_splits(LINEAR)
    with torch.no_grad():
        bank, test = (
            encoder.module.eval()(torch.stack([*ImageDataset(i, encoder.transform)]))
            for i in (splits.train.items[:200], splits.test.items)
        )
    labels = (splits.train.labels[:200], splits.test.labels)
    expected = knn_accuracy(
        bank, labels[0], test, labels[1], ks=[20], temperatures=[0.07]
    )
    assert logged == [f"{expected[20, 0.07].top1:.2f}"]


def test_says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="interval must be >= 1, got 0"):
        KNNHook(BANK, TEST, interval=0)
    with pytest.raises(ValueError, match=r"k must be in \[1, 200\]"):
        KNNHook(BANK, TEST, k=201).before_train(None)
    with pytest.raises(ValueError, match=r"the dataset Digits \(is it empty\?\)"):
        KNNHook(BANK, deepcopy(TEST) | {"indices": 0}).before_train(None)
