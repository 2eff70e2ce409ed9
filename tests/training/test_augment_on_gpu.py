"""What the augmentation of a batch costs a GPU, on a pretend one."""

import pytest
import torch
from pretend_gpu import PretendGpu

from varcon_plugin.training import BatchAugment, batch_augment

COUNT, SIZE = 48, 64
VIEWS, AT = 1024, 224  # of the ImageNet recipe, on one GPU


def views(count=COUNT, size=SIZE):
    generator = torch.Generator().manual_seed(0)
    shape = (count, size, size, 3)
    noise = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return [noise, noise.flip(0)]


@pytest.fixture(scope="module")
def run():
    """What a GPU counted and made of two views, and what the CPU made of them."""
    augment = BatchAugment(mean=(0, 0, 0), std=(1, 1, 1))
    augment.restart(0, 0, 0)
    on_cpu = augment(views())
    augment.restart(0, 0, 0)
    with PretendGpu() as gpu:
        on_gpu = augment([gpu.put(view) for view in views()])
    return gpu, [view.host for view in on_gpu], on_cpu


def test_the_host_neither_waits_nor_mixes_devices(run):
    gpu, _, _ = run
    assert gpu.syncs == {}
    assert gpu.mixed == {}


def test_parameters_come_in_one_copy_for_each_view(run):
    assert sum(run[0].copies.values()) == 2


def test_at_most_25_gb_are_moved_for_the_views_of_a_gpu(run):
    moved = sum(run[0].moved.values())
    scale = VIEWS * AT**2 / (2 * COUNT * SIZE**2)
    assert moved * scale < 25e9


def test_half_precision_stays_within_what_the_docstring_states(run):
    _, on_gpu, on_cpu = run
    for half, full in zip(on_gpu, on_cpu, strict=True):
        assert half.dtype == torch.float32
        error = (half - full).abs()
        assert 0 < error.mean() < 0.3
        assert error.max() < 3


def test_a_chunk_is_no_more_than_a_view_of_the_recipe(monkeypatch):
    augment = BatchAugment()
    monkeypatch.setattr(batch_augment, "DEFAULT_CHUNK", 5 * SIZE**2)
    augment.restart(0, 0, 0)
    whole = augment(views(12))
    augment.restart(0, 0, 0)
    with PretendGpu() as gpu:
        parts = augment([gpu.put(view) for view in views(12)])
    assert sum(gpu.copies.values()) == 2  # one upload, however many chunks
    for part, full in zip(parts, whole, strict=True):
        torch.testing.assert_close(part.host, full, rtol=0, atol=0.06)  # of 1 / std
