"""The additions to a recipe that docs/mmpretrain.md shows, run as they stand there."""

import re
import sys
import types

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from paths import REPO

PAGE = (
    (REPO / "docs" / "mmpretrain.md").read_text().split("## Additions to a recipe")[1]
)
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def run(block, tmp_path, **options):
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
            **options,
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


class StandIn(types.ModuleType):
    """wandb's functions that mmengine calls: needs no account, keeps what it gets."""

    def __init__(self):
        super().__init__("wandb")
        self.started, self.logged, self.settings, self.ended = [], [], {}, 0
        self.config = types.SimpleNamespace(
            update=lambda values, **_: self.settings.update(values)
        )
        self.run = types.SimpleNamespace(log_code=lambda name: None)

    def init(self, **options):
        self.started.append(options)

    def log(self, values, commit):
        self.logged.append(values)

    def join(self):
        self.ended += 1


def test_weights_and_biases_gets_losses_and_measures(tmp_path, monkeypatch):
    wandb = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    (block,) = [block for block in BLOCKS if "WandbVisBackend" in block]
    more = 'default_hooks = dict(diagnostics=dict(type="VarConDiagnosticsHook"))\n'
    run(block + more, tmp_path, **{"default_hooks.diagnostics.interval": 1})
    assert [options["project"] for options in wandb.started] == ["varcon"]
    assert wandb.settings["train_dataloader"]["batch_size"] == 32
    names = {name for values in wandb.logged for name in values}
    assert {"loss", "kl", "nll", "varcon/loss", "varcon/tau2_mean"} <= names


def test_no_block_is_left_untried():
    assert len(BLOCKS) == 4
