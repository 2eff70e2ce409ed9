"""Batches come in order and complete, each copied while the one before is used."""

import torch

from varcon_plugin.training.prefetch import CopyAhead


class Loader:
    dataset = "images"

    def __init__(self, log):
        self.log = log

    def __len__(self):
        return 3

    def __iter__(self):
        for number in range(3):
            self.log.append(f"load {number}")
            yield torch.full((2,), number)


def test_the_next_batch_is_copied_before_a_batch_is_handed_out():
    log = []

    def copy(batch, device):
        log.append(f"copy {int(batch[0])}")
        there = batch.to(device) + 10
        return there, [there]

    ahead = CopyAhead(Loader(log), torch.device("cpu"), copy)
    for batch in ahead:
        log.append(f"step {int(batch[0]) - 10}")
    assert log == [
        *("load 0", "copy 0", "load 1", "copy 1", "step 0"),
        *("load 2", "copy 2", "step 1", "step 2"),
    ]


def test_the_rest_is_the_loaders():
    ahead = CopyAhead(
        Loader([]), torch.device("cpu"), lambda batch, _: (batch, [batch])
    )
    assert len(ahead) == 3
    assert ahead.dataset == "images"
    assert [int(batch[0]) for batch in ahead] == [int(b[0]) for b in ahead] == [0, 1, 2]


def test_an_empty_loader_yields_nothing():
    assert list(CopyAhead([], torch.device("cpu"), lambda batch, _: (batch, []))) == []
