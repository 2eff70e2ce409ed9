"""What only a GPU can show; ``make test-gpu`` runs it, elsewhere it is skipped."""

import copy

import pytest
import torch

from varcon_plugin import VarConLoss
from varcon_plugin.evaluation.knn import nearest_neighbors
from varcon_plugin.momentum import MomentumCentroids
from varcon_plugin.training import BatchAugment
from varcon_plugin.training.lars import ForeachLARS
from varcon_plugin.training.prefetch import CopyAhead

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU of NVIDIA"),
]
GPU = torch.device("cuda", 0)
CLASSES, DIM = 1000, 128


@pytest.fixture
def no_waiting():
    """Any synchronisation of the host with the GPU is an error."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


LOSSES = {
    "means": lambda: VarConLoss(num_classes=CLASSES),
    "leave_one_out": lambda: VarConLoss(num_classes=CLASSES, leave_one_out=True),
    "bank": lambda: VarConLoss(centroids=MomentumCentroids(CLASSES, DIM)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_has_the_cpus_numbers_without_waiting(name, request):
    on_cpu = LOSSES[name]()
    on_gpu = copy.deepcopy(on_cpu).to(GPU)
    embeddings, labels = torch.randn(2048, DIM), torch.randint(CLASSES, (2048,))
    x, y = embeddings.clone().requires_grad_(), embeddings.to(GPU).requires_grad_()
    there = labels.to(GPU)
    on_cpu(x, labels).backward()
    request.getfixturevalue("no_waiting")
    on_gpu(y, there).backward()
    torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(y.grad.cpu(), x.grad, rtol=1e-4, atol=1e-7)


def test_augmentation_has_the_cpus_numbers_without_waiting(request):
    augment = BatchAugment(mean=(0, 0, 0), std=(1, 1, 1))
    images = torch.randint(0, 256, (64, 96, 96, 3), dtype=torch.uint8)
    there = images.to(GPU)
    augment.restart(0, 0, 0)
    (expected,) = augment([images])
    augment.restart(0, 0, 0)
    request.getfixturevalue("no_waiting")
    (found,) = augment([there])
    torch.cuda.set_sync_debug_mode("default")
    error = (found.cpu() - expected).abs()
    assert error.mean() < 0.3
    assert error.max() < 3


def test_lars_has_the_cpus_numbers_without_waiting(request):
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 64)
    twin = copy.deepcopy(model).to(GPU)
    for net in (model, twin):
        for number, p in enumerate(net.parameters()):
            p.grad = torch.full_like(p, 0.1 + number)
    one, other = (
        ForeachLARS(net.parameters(), lr=0.5, momentum=0.9) for net in (model, twin)
    )
    one.step()
    request.getfixturevalue("no_waiting")
    other.step()
    torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(twin.weight.cpu(), model.weight, rtol=1e-5, atol=1e-6)


def test_batches_copied_ahead_are_whole():
    batches = [torch.full((1 << 22,), float(i)).pin_memory() for i in range(6)]

    def copy_one(batch, device):
        there = batch.to(device, non_blocking=True)
        return there, [there]

    found = [batch.sum() / len(batch) for batch in CopyAhead(batches, GPU, copy_one)]
    assert torch.stack(found).tolist() == [0, 1, 2, 3, 4, 5]


def test_neighbours_are_those_of_the_cpu():
    bank, labels, test = (
        torch.randn(500, 16),
        torch.arange(500) % 7,
        torch.randn(60, 16),
    )
    expected = nearest_neighbors(bank, labels, test, 5)
    found = nearest_neighbors(bank, labels, test.to(GPU), 5, chunk_size=100)
    torch.testing.assert_close(
        found.similarity.cpu(), expected.similarity, rtol=1e-4, atol=1e-4
    )
