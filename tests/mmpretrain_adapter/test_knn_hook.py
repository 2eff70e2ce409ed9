import json
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS

from varcon_plugin.evaluation.images import ImageDataset
from varcon_plugin.evaluation.knn import knn_accuracy
from varcon_plugin.mmpretrain.evaluation import load_encoder, load_splits
from varcon_plugin.mmpretrain.knn_hook import KNNHook

REPO = Path(__file__).parents[2]
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
    (log,) = Path(runs[0].work_dir).glob("*/vis_data/scalars.json")
    rows = map(json.loads, log.read_text().splitlines())
    rows = [row for row in rows if "knn/top1" in row]
    assert [row["step"] for row in rows] == [2, 3]
    assert all(0 < row["knn/top1"] <= row["knn/top5"] <= 100 for row in rows)


def hook_on_rank(rank):
    """One evaluation where each rank has BatchNorm statistics of its own."""
    cfg = Config.fromfile(DIGITS)
    init_default_scope("mmpretrain")
    torch.manual_seed(0)
    model = MODELS.build({**cfg.model, "data_preprocessor": cfg.data_preprocessor})
    for buffer in model.buffers():
        buffer.add_(rank)
    own = {name: buffer.clone() for name, buffer in model.named_buffers()}
    logged = {}
    log = SimpleNamespace(
        add_scalars=lambda scalars, step: logged.update(scalars),
        update_scalar=lambda tag, value: None,
        info=lambda line: None,
    )
    runner = SimpleNamespace(
        model=model, cfg=cfg, epoch=0, max_epochs=1, visualizer=log, message_hub=log,
        logger=log, hooks=[], train_dataloader=SimpleNamespace(num_workers=0),
    )  # fmt: skip
    hook = KNNHook(BANK, TEST)
    hook.before_train(runner)
    hook.after_train_epoch(runner)
    kept = all(torch.equal(own[name], b) for name, b in model.named_buffers())
    return logged, kept


def test_ranks_use_the_model_of_the_first_and_keep_their_own(run_ranks):
    """The checkpoint holds the BatchNorm statistics of rank 0."""
    (logged, kept), (others, others_kept) = run_ranks(hook_on_rank, 2)
    assert kept
    assert others_kept
    assert others == {}
    assert logged == hook_on_rank(0)[0]


def test_says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="interval must be >= 1, got 0"):
        KNNHook(BANK, TEST, interval=0)
    with pytest.raises(ValueError, match=r"k must be in \[1, 200\]"):
        KNNHook(BANK, TEST, k=201).before_train(None)
    with pytest.raises(ValueError, match=r"the dataset Digits \(is it empty\?\)"):
        KNNHook(BANK, deepcopy(TEST) | {"indices": 0}).before_train(None)


def test_accuracies_choose_the_best_checkpoint_and_stop_early(tmp_path):
    """A gain of 100 points is asked for, so the second evaluation is the last."""
    stop = {"type": "EarlyStoppingHook", "monitor": "knn/top1", "min_delta": 100,
            "patience": 1}  # fmt: skip
    knn = {"type": "KNNHook", "bank": BANK, "test": TEST}
    cfg = digits_config(tmp_path, [knn, stop], epochs=5)
    cfg.default_hooks.checkpoint.save_best = "knn/top1"
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.epoch == 2
    scores = runner.message_hub.get_scalar("knn/top1").data[0]
    (best,) = tmp_path.glob("best_knn_top1_epoch_*.pth")
    assert best.stem == f"best_knn_top1_epoch_{1 + int(scores.argmax())}"
    assert runner.message_hub.get_info("best_score") == pytest.approx(scores.max())
