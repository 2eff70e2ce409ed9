"""What data workers share: epoch seeds and the table of damaged files."""

import logging
import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from varcon_plugin.training.damaged import (
    CorruptImageError,
    CorruptImages,
    ReplaceCorrupt,
)
from varcon_plugin.training.seeding import WorkerSeed, mix_seeds


class Draws(Dataset):
    """Random numbers from all three sources."""

    def __init__(self):
        self.worker_seed = WorkerSeed()

    def __len__(self):
        return 12

    def __getitem__(self, index):
        self.worker_seed.apply()
        numbers = (random.random(), np.random.rand(), torch.rand(()).item())  # noqa: NPY002
        return torch.tensor(numbers, dtype=torch.float64)


class Damaged(Dataset):
    """Samples 2, 5 and 7 are damaged."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        if index in (2, 5, 7):
            raise CorruptImageError("ends early", f"{index}.jpg")
        return index


def epochs(steps, rank=0, workers=2, context="fork"):
    """The numbers of one epoch for each of ``steps``, from fresh workers."""
    dataset = Draws()
    loader = DataLoader(
        dataset,
        2,
        num_workers=workers,
        persistent_workers=True,
        multiprocessing_context=context,
    )
    drawn = []
    for step in steps:
        dataset.worker_seed.restart(5, rank, step)
        drawn.append(torch.cat(list(loader)))
    return drawn


def test_a_resumed_run_draws_what_the_uninterrupted_one_draws():
    first, second, third = epochs([0, 6, 12])
    assert not torch.equal(first, second)
    (resumed,) = epochs([12])
    assert torch.equal(resumed, third)


def test_ranks_workers_and_samples_draw_different_numbers():
    both = torch.cat([*epochs([0]), *epochs([0], rank=1)])
    assert len(both.flatten().unique()) == both.numel()


def test_a_sample_drawn_by_the_parent_does_not_change_the_workers():
    dataset = Draws()
    dataset.worker_seed.restart(5, 0, 0)
    dataset[0]
    drawn = torch.cat(list(DataLoader(dataset, 2, num_workers=2)))
    assert torch.equal(drawn, epochs([0])[0])


def test_spawned_workers_see_the_same_seed():
    (spawned,) = epochs([3], workers=1, context="spawn")
    (forked,) = epochs([3], workers=1)
    assert torch.equal(spawned, forked)


def test_without_restart_nothing_is_seeded():
    random.seed(0)
    expected = random.random()
    random.seed(0)
    WorkerSeed().apply()
    assert random.random() == expected


def test_mixed_seeds_differ_and_fit_a_generator():
    seeds = {mix_seeds(a, b, c) for a in range(8) for b in range(8) for c in range(8)}
    assert len(seeds) == 512
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_file_is_reported_once_up_to_the_limit():
    corrupt = CorruptImages(limit=2)
    assert "a.jpg cannot be used: why" in corrupt.report(
        CorruptImageError("why", "a.jpg")
    )
    assert corrupt.report(CorruptImageError("why", "a.jpg")) is None
    assert "2, at most 2" in corrupt.report(CorruptImageError("why", "b.jpg"))
    assert corrupt.report(CorruptImageError("why", "b.jpg")) is None
    with pytest.raises(RuntimeError, match=r"more than 2 images .* at last: c\.jpg"):
        corrupt.report(CorruptImageError("why", "c.jpg"))


def test_limit_zero_makes_the_first_an_error():
    with pytest.raises(RuntimeError, match=r"^a\.jpg cannot be used: why$"):
        CorruptImages(limit=0).report(CorruptImageError("why", "a.jpg"))
    with pytest.raises(ValueError, match="limit must be >= 0"):
        CorruptImages(limit=-1)


def test_damaged_samples_are_replaced_and_logged(caplog):
    dataset = ReplaceCorrupt(Damaged())
    assert len(dataset) == 10
    with caplog.at_level(logging.ERROR):
        samples = [dataset[index] for _ in range(3) for index in range(10)]
    assert not {2, 5, 7} & set(samples)
    assert samples[0] == 0
    assert sorted(r.message.split(" ")[0] for r in caplog.records) == [
        "2.jpg",
        "5.jpg",
        "7.jpg",
    ]


def two_epochs(limit):
    loader = DataLoader(ReplaceCorrupt(Damaged(), max_corrupt=limit), 1, num_workers=2)
    return [len(list(loader)) for _ in range(2)]


def test_workers_count_together():
    assert two_epochs(limit=3) == [10, 10]
    with pytest.raises(RuntimeError, match="more than 2 images are damaged"):
        two_epochs(limit=2)
