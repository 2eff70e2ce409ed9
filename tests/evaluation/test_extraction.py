import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from varcon_plugin.distributed import active_group, rank_of
from varcon_plugin.evaluation.features import evaluating, extract_features


class Pictures(Dataset):
    """Images whose first pixel is their position."""

    def __init__(self, count):
        self.images = torch.randint(
            256, (count, 3, 4, 4), generator=torch.Generator().manual_seed(0)
        ).byte()
        self.images[:, 0, 0, 0] = torch.arange(count)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


class Encoder(nn.Module):
    """Flattens, through layers that differ between train and evaluation mode."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)

    def forward(self, images):
        return self.drop(self.norm(images.float())).flatten(1)


def extracted(rank, count, batch_size):
    assert rank_of(active_group()) == rank
    return extract_features(Encoder(), Pictures(count), batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
@pytest.mark.parametrize("workers", [0, 2])
def test_order_and_values(batch_size, workers):
    data = Pictures(11)
    found = extract_features(Encoder(), data, batch_size=batch_size, workers=workers)
    expected = data.images.float().flatten(1) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "count", [9, 8, 2]
)  # with 3 ranks: repeats, and a rank of none
def test_any_number_of_ranks(run_ranks, count):
    found = run_ranks(extracted, 3, count, 2)
    assert found[1] is None
    assert found[2] is None
    whole = extract_features(Encoder(), Pictures(count))
    assert torch.equal(found[0], whole)


def test_modes_come_back_and_nothing_is_learned():
    encoder = Encoder().train()
    encoder.norm.eval()  # frozen by the training recipe
    mean = encoder.norm.running_mean.clone()
    extract_features(encoder, Pictures(5))
    assert encoder.training
    assert encoder.drop.training
    assert not encoder.norm.training
    assert torch.equal(encoder.norm.running_mean, mean)


def test_modes_come_back_after_an_error():
    encoder = Encoder().train()
    with pytest.raises(ValueError, match="expected 4D"), evaluating(encoder):
        encoder(torch.zeros(2, 5))
    assert encoder.drop.training
    assert torch.is_grad_enabled()


def test_the_random_numbers_of_a_run_are_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    extract_features(Encoder(), Pictures(5))
    assert torch.equal(torch.rand(3), expected)


def test_says_what_is_wrong():
    with pytest.raises(ValueError, match="the test split is empty"):
        extract_features(Encoder(), TensorDataset(torch.empty(0, 3)), title="test")
    with pytest.raises(ValueError, match=r"\(B, D\), got shape \(2, 3, 4, 4\) for 2"):
        extract_features(nn.Identity(), Pictures(2))
    broken = Encoder()
    nn.init.constant_(broken.norm.bias, np.nan)
    with pytest.raises(ValueError, match="5 of 5 train features hold NaN"):
        extract_features(broken, Pictures(5), title="train")
