"""The pretend GPU finds what it is for, and what a loss costs there."""

import pytest
import torch
from pretend_gpu import PretendGpu

from varcon_plugin import VarConLoss
from varcon_plugin.health.measures import random_confidence
from varcon_plugin.momentum import MomentumCentroids

SAMPLES, CLASSES, DIM = 64, 10, 16


@pytest.fixture
def gpu():
    with PretendGpu() as device:
        yield device


WAITS = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool((x > 0).any()),
    "tolist": lambda x: x.tolist(),
    "mask": lambda x: x[x > 0],
    "nonzero": lambda x: x.nonzero(),
    "cpu": lambda x: x.cpu(),
    "host index": lambda x: x[torch.tensor([1, 2])],
    "unique": lambda x: torch.unique(x),
    "upload": lambda x: torch.ones(3).to(x.device),
    "tensor": lambda x: x.new_tensor([1.0, 2.0]),
}


@pytest.mark.parametrize("name", WAITS)
def test_what_makes_the_host_wait_is_counted(gpu, name):
    WAITS[name](gpu.put(torch.randn(5)))
    assert sum(gpu.syncs.values()) == 1


def test_what_does_not_is_not(gpu):
    x = gpu.put(torch.randn(5, 5)).requires_grad_()
    y = x.index_select(
        0, torch.zeros(2, dtype=torch.int64).to(x.device, non_blocking=True)
    )
    (y @ x.T).relu().sum().backward()
    assert gpu.syncs == {}
    assert gpu.mixed == {}
    assert x.grad.device.type == "cuda"
    assert sum(gpu.copies.values()) == 1
    assert gpu.launches["mm"] == 3


def test_two_devices_in_one_operation_are_counted(gpu):
    x = gpu.put(torch.randn(5))
    assert (x + torch.tensor(1.0)).device.type == "cuda"  # 0-dim: allowed
    assert gpu.mixed == {}
    x + torch.ones(5)
    assert [name for name, _ in gpu.mixed] == ["add"]


def test_bytes_are_each_argument_and_result_once(gpu):
    x = gpu.put(torch.randn(100))
    x + x.neg()
    assert gpu.moved["add"] == 3 * 100 * 4


def test_numpy_is_refused(gpu):
    with pytest.raises(TypeError, match="cuda:0"):
        gpu.put(torch.ones(3)).numpy()


LOSSES = {
    "means": lambda: VarConLoss(num_classes=CLASSES),
    "leave_one_out": lambda: VarConLoss(num_classes=CLASSES, leave_one_out=True),
    "attached": lambda: VarConLoss(num_classes=CLASSES, detach_centroids=False),
    "none": lambda: VarConLoss(num_classes=CLASSES, reduction="none"),
    "small temperature": lambda: VarConLoss(0.01, 0.001, num_classes=CLASSES),
    "bank": lambda: VarConLoss(centroids=MomentumCentroids(CLASSES, DIM)),
    "negatives": lambda: VarConLoss(
        centroids=MomentumCentroids(CLASSES, DIM, num_negatives=4)
    ),
    "accumulation": lambda: VarConLoss(
        centroids=MomentumCentroids(CLASSES, DIM, accumulation_steps=2)
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_that_knows_its_classes_never_waits(gpu, name):
    embeddings = torch.randn(SAMPLES, DIM)
    labels = torch.randint(CLASSES, (SAMPLES,))
    on_cpu, on_gpu = LOSSES[name](), gpu.put(LOSSES[name]())
    for _ in range(3):
        expected = embeddings.clone().requires_grad_()
        on_cpu(expected, labels).sum().backward()
        there = gpu.put(embeddings).requires_grad_()
        on_gpu(there, gpu.put(labels)).sum().backward()
        torch.testing.assert_close(there.grad.host, expected.grad)
    assert gpu.syncs == {}
    assert gpu.mixed == {}


def test_diagnostics_do_not_mix_devices(gpu):
    random_confidence(gpu.put(torch.full((CLASSES,), 6.0)), DIM, 0.1)
    assert gpu.mixed == {}
