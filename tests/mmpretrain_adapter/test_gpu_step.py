"""How often a step of the ImageNet recipe makes the host wait, on a pretend GPU."""

from collections import Counter

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.optim import build_optim_wrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import DATA_SAMPLERS  # noqa: F401  fills the registries
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from paths import REPO
from pretend_gpu import PretendGpu

from varcon_plugin.mmpretrain.speed import copy_inputs

IMAGES, SIZE = 6, 64
LOGGED = {"loss", "kl", "nll", "tau2", "confidence"}  # read by mmengine at each step


@pytest.fixture(scope="module")
def step():
    """What a pretend GPU counted in the third step of the recipe, narrow and small."""
    cfg = Config.fromfile(REPO / "configs" / "varcon_r50_imagenet.py")
    cfg.model.backbone.update(depth=18, stem_channels=16, base_channels=16)
    cfg.model.neck.in_channels = 128
    torch.manual_seed(0)
    config = {**cfg.model, "data_preprocessor": cfg.data_preprocessor}
    with PretendGpu() as gpu, pytest.MonkeyPatch.context() as patch:
        patch.setattr(amp_optimizer_wrapper, "is_cuda_available", lambda: True)
        model = gpu.put(MODELS.build(config))
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        hub = MessageHub("test_gpu_step")
        for _ in range(3):
            for counter in (gpu.syncs, gpu.copies, gpu.mixed):
                counter.clear()
            shape = (IMAGES, 2, SIZE, SIZE, 3)
            batch = {
                "inputs": torch.randint(0, 256, shape, dtype=torch.uint8),
                "data_samples": [DataSample().set_gt_label(i) for i in range(IMAGES)],
            }
            batch, _ = copy_inputs(batch, torch.device("cuda", 0))
            logged = model.train_step(batch, wrapper)
            assert set(logged) == LOGGED
            for name, value in logged.items():  # as mmengine's RuntimeInfoHook
                hub.update_scalar(f"train/{name}", value)
    return gpu


def test_the_host_waits_eight_times_at_most_and_mostly_to_log(step):
    where = Counter()
    for (_, place), count in step.syncs.items():
        where["log" if "message_hub" in place else place] += count
    assert where["log"] == len(LOGGED)
    assert sum(where.values()) <= 8, where


def test_labels_go_up_in_one_copy(step):
    """One for the images, one for the labels, one of parameters for each view."""
    to_gpu = {place: n for (way, place), n in step.copies.items() if way == "to GPU"}
    assert sum(to_gpu.values()) == 4, to_gpu
    assert sum(n for place, n in to_gpu.items() if "algorithm.py" in place) == 1


def test_no_operation_mixes_devices(step):
    assert step.mixed == {}
