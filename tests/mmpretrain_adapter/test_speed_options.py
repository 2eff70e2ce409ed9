"""Options of the ImageNet recipe that must not change what it computes."""

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import Runner
from paths import REPO

from varcon_plugin.mmpretrain import speed
from varcon_plugin.mmpretrain.launch import prepare

PLAIN = {"model.channels_last": False, "optim_wrapper.type": "OptimWrapper"}
OPTIONS = {
    "channels_last": {
        "model.channels_last": True,
        "data_preprocessor.channels_last": True,
    },
    "compile": {
        "default_hooks.compile": {"type": "CompileHook", "backend": "aot_eager"}
    },
    "amp": {"optim_wrapper.type": "BFloat16OptimWrapper"},
}
# bfloat16 has 8 bits of mantissa; the others only change the order of float32 sums
TOLERANCE = {"channels_last": 1e-4, "compile": 1e-4, "amp": 2e-2}


class RecordLosses(Hook):
    def __init__(self):
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(outputs["loss"].item())


def loss_curve(image_folder, work_dir, options):
    """Losses of six steps of the recipe with a narrow ResNet-18 and 64-pixel crops."""
    cfg = Config.fromfile(REPO / "configs" / "varcon_r50_imagenet.py")
    cfg.train_dataloader.update(batch_size=4, num_workers=0, persistent_workers=False)
    cfg.train_dataloader.pin_memory = False
    cfg.train_dataloader.dataset = {
        "type": "CustomDataset",
        "data_root": str(image_folder),
        "data_prefix": "train",
        "pipeline": [{"type": "TwoCrops", "scale": 64}, {"type": "PackInputs"}],
    }
    cfg.model.backbone.update(depth=18, stem_channels=16, base_channels=16)
    cfg.model.neck.in_channels = 128
    cfg.model.head.loss.temperature = 1.0  # two classes: at 0.1 the loss is 0 at once
    cfg.optim_wrapper.optimizer.lr *= 4 / 4096
    cfg.randomness = {"seed": 0}
    cfg.param_scheduler = None
    cfg.train_cfg = {"by_epoch": True, "max_epochs": 3}
    cfg.work_dir, cfg.launcher = str(work_dir), "none"
    cfg.experiment_name = work_dir.name
    prepare(cfg, "train")
    cfg.merge_from_dict(PLAIN | options)
    record = RecordLosses()
    runner = Runner.from_cfg(cfg)
    runner.register_hook(record)
    runner.train()
    return record.losses, runner


def watch_layouts(monkeypatch):
    """Fills with whether the inputs of the inner convolutions are channels-last."""
    seen = set()
    forward = torch.nn.Conv2d.forward

    def watch(self, images):
        if images.shape[1] > 3 and images.shape[2] > 1:  # otherwise both layouts agree
            seen.add(images.is_contiguous(memory_format=torch.channels_last))
        return forward(self, images)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", watch)
    return seen


@pytest.fixture(scope="module")
def plain(image_folder, tmp_path_factory):
    losses, _ = loss_curve(image_folder, tmp_path_factory.mktemp("plain"), {})
    assert len(losses) == 6
    assert len(set(losses)) == 6
    return losses


@pytest.mark.parametrize("name", OPTIONS)
def test_loss_curve_is_that_of_the_plain_recipe(
    name, plain, image_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(speed, "has_bfloat16", lambda device: True)  # slow elsewhere
    layouts = watch_layouts(monkeypatch) if name != "compile" else set()
    losses, runner = loss_curve(image_folder, tmp_path, OPTIONS[name])
    expected = pytest.approx(plain, rel=TOLERANCE[name])
    assert losses == expected
    if name == "amp":
        assert losses != pytest.approx(plain, rel=1e-6)
    if name == "compile":
        assert runner.model.backbone._compiled_call_impl is not None
        plain_names = runner.model.state_dict().keys()
        assert not [name for name in plain_names if "_orig_mod" in name]
    assert layouts == ({name == "channels_last"} if name != "compile" else set())


@pytest.mark.parametrize("found", [True, False])
def test_mixed_precision_on_a_cpu_is_bfloat16_where_it_has_that(found, monkeypatch):
    """A recipe's AmpOptimWrapper, which mmengine has for GPUs alone."""
    cfg = Config.fromfile(REPO / "configs" / "varcon_r50_imagenet.py")
    cfg.launcher = "none"
    prepare(cfg, "train")
    monkeypatch.setattr(speed, "has_bfloat16", lambda device: found)
    said = []
    monkeypatch.setattr(speed, "print_log", lambda text, **_: said.append(text))
    layer = torch.nn.Linear(4, 4)
    config = cfg.optim_wrapper.to_dict()
    config.pop("paramwise_cfg")
    wrapper = OPTIM_WRAPPERS.build(
        {**config, "optimizer": torch.optim.SGD(layer.parameters(), lr=0.1)}
    )
    with wrapper.optim_context(layer):
        out = layer(torch.randn(2, 4))
    assert out.dtype == (torch.bfloat16 if found else torch.float32)
    assert ("bfloat16 on this CPU" in said[0]) == found
    assert ("float32" in said[0]) != found
    wrapper.update_params(out.float().sum())
    assert layer.weight.grad is None or layer.weight.grad.dtype == torch.float32
