"""Options of the ImageNet recipe that must not change what it computes."""

import pytest
import torch
from conftest import REPO
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.runner import Runner

from varcon_plugin.mmpretrain.launch import prepare

OPTIONS = {
    "channels_last": {"data_preprocessor.channels_last": True},
    "compile": {"compile": {"backend": "aot_eager"}},
    "amp": {"optim_wrapper.type": "AmpOptimWrapper", "optim_wrapper.dtype": "bfloat16"},
}
# bfloat16 has 8 bits of mantissa; the others only change the order of float32 sums
TOLERANCE = {"channels_last": 1e-4, "compile": 1e-4, "amp": 2e-2}


class RecordLosses(Hook):
    def __init__(self):
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(outputs["loss"].item())


def loss_curve(image_folder, work_dir, options):
    """The losses of six steps of the recipe with a ResNet-18 and 64-pixel crops."""
    cfg = Config.fromfile(REPO / "configs" / "varcon_r50_imagenet.py")
    cfg.train_dataloader.update(batch_size=4, num_workers=0, persistent_workers=False)
    cfg.train_dataloader.pin_memory = False
    cfg.train_dataloader.dataset = {
        "type": "CustomDataset",
        "data_root": str(image_folder),
        "data_prefix": "train",
        "pipeline": [{"type": "TwoCrops", "scale": 64}, {"type": "PackInputs"}],
    }
    cfg.model.backbone.depth = 18
    cfg.model.neck.in_channels = 512
    cfg.model.head.loss.temperature = 1.0  # two classes: at 0.1 the loss is 0 at once
    cfg.optim_wrapper.optimizer.lr *= 4 / 4096
    cfg.randomness = {"seed": 0}
    cfg.param_scheduler = None
    cfg.train_cfg = {"by_epoch": True, "max_epochs": 3}
    cfg.work_dir, cfg.launcher = str(work_dir), "none"
    cfg.experiment_name = work_dir.name
    prepare(cfg, "train")
    cfg.merge_from_dict(options)
    record = RecordLosses()
    runner = Runner.from_cfg(cfg)
    runner.register_hook(record)
    runner.train()
    return record.losses, runner


@pytest.fixture(scope="module")
def plain(image_folder, tmp_path_factory):
    losses, _ = loss_curve(image_folder, tmp_path_factory.mktemp("plain"), {})
    assert len(losses) == 6
    assert len(set(losses)) == 6
    return losses


# torch's compiler looks at mmengine's losses
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:.*GradScaler is enabled, but CUDA:UserWarning")
@pytest.mark.parametrize("name", OPTIONS)
def test_loss_curve_is_that_of_the_plain_recipe(
    name, plain, image_folder, tmp_path, monkeypatch
):
    # mmengine's wrapper asks for a GPU; its autocast then takes the CPU's
    monkeypatch.setattr(amp_optimizer_wrapper, "is_cuda_available", lambda: True)
    losses, runner = loss_curve(image_folder, tmp_path, OPTIONS[name])
    expected = pytest.approx(plain, rel=TOLERANCE[name])
    assert losses == expected
    if name == "amp":
        assert losses != pytest.approx(plain, rel=1e-6)
    if name == "channels_last":
        assert runner.model.data_preprocessor.augment.channels_last


def test_inputs_are_channels_last_when_asked_for(image_folder, tmp_path):
    seen = []
    options = OPTIONS["channels_last"] | {"train_cfg.max_epochs": 1}
    forward = torch.nn.Conv2d.forward

    def watch(self, images):
        if images.shape[1] > 3:
            seen.append(images.is_contiguous(memory_format=torch.channels_last))
        return forward(self, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Conv2d, "forward", watch)
        loss_curve(image_folder, tmp_path, options)
    assert seen
    assert all(seen)
