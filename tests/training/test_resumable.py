"""The order and the random numbers of an epoch, from anywhere in it."""

import random

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from varcon_plugin.training.resumable import ResumableSampler, SeededDataset


class Draws(Dataset):
    def __len__(self):
        return 11

    def __getitem__(self, index):
        return index, random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002


def epochs(begin, workers=0, start=0):
    sampler = ResumableSampler(11, seed=3)
    loader = DataLoader(SeededDataset(Draws()), 2, sampler=sampler, num_workers=workers)
    sampler.go_to(begin, start)
    found = []
    for epoch in range(begin, 2):
        sampler.set_epoch(epoch)
        found.append([torch.stack([v.double() for v in b]) for b in loader])
    return found


def test_a_run_that_begins_in_an_epoch_draws_what_a_whole_one_draws():
    whole = epochs(0)
    assert [len(epoch) for epoch in whole] == [6, 6]
    assert sorted(torch.cat(whole[0], dim=1)[0].tolist()) == list(range(11))
    assert not torch.equal(whole[0][0], whole[1][0])
    part = epochs(0, start=4)
    assert all(map(torch.equal, part[0], whole[0][2:]))
    assert all(map(torch.equal, part[1], whole[1]))


def test_workers_change_nothing():
    for one, other in zip(epochs(1), epochs(1, workers=2), strict=True):
        assert all(map(torch.equal, one, other))


def drawn(rank):
    sampler = ResumableSampler(11, seed=3)
    return len(sampler), list(sampler)


def test_ranks_share_an_epoch(run_ranks):
    (length, one), (_, other) = run_ranks(drawn, 2)
    assert length == len(one) == len(other) == 5
    mixed = [draw for pair in zip(one, other, strict=True) for draw in pair]
    assert mixed == list(ResumableSampler(11, seed=3))[:10]
