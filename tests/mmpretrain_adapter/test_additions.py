"""The additions to a recipe that docs/mmpretrain.md shows, run as they stand there."""

import re

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from paths import REPO

PAGE = (
    (REPO / "docs" / "mmpretrain.md").read_text().split("## Additions to a recipe")[1]
)
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def run(block, tmp_path):
    """Train the digits for two epochs of two small steps with ``block`` on top."""
    path = tmp_path / "addition.py"
    base = str(REPO / "configs" / "varcon_r18_digits.py")
    path.write_text(block.replace("varcon_r18_digits.py", base))
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(
        {
            "work_dir": str(tmp_path / "run"),
            "train_dataloader.dataset.indices": 64,
            "train_dataloader.batch_size": 32,
            "train_cfg.max_epochs": 2,
            "default_hooks.checkpoint.interval": 1,
            "experiment_name": tmp_path.name,
        }
    )
    for hook in cfg.get("custom_hooks", ()):
        for part in ("bank", "test"):
            if part in hook:
                hook[part]["indices"] = 40
    runner = Runner.from_cfg(cfg)
    runner.train()
    return tmp_path / "run"


@pytest.mark.parametrize(
    "word", ["EarlyStoppingHook", "EMAHook", "TensorboardVisBackend"]
)
def test_the_addition_trains_and_leaves_what_it_promises(word, tmp_path):
    (block,) = [block for block in BLOCKS if word in block]
    work_dir = run(block, tmp_path)
    if word == "EMAHook":
        content = torch.load(work_dir / "epoch_2.pth", weights_only=False)
        assert any("backbone" in name for name in content["ema_state_dict"])
    elif word == "EarlyStoppingHook":
        assert [*work_dir.glob("best_knn_top1_epoch_*.pth")]
    else:
        assert [*work_dir.glob("*/vis_data/events.out.tfevents.*")]


def test_no_block_is_left_untried():
    assert len(BLOCKS) == 3
