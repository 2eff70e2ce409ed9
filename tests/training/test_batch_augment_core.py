"""`BatchAugment`: distribution of its parameters, independence, determinism."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import ColorJitter

from varcon_plugin.training import BatchAugment, color
from varcon_plugin.training import batch_augment as batch_module
from varcon_plugin.training.batch_augment import apply_augment

MANY = 20_000
ADJUSTMENTS = (
    color.adjust_brightness,
    color.adjust_contrast,
    color.adjust_saturation,
    color.adjust_hue,
)


@pytest.fixture(scope="module")
def parameters():
    return BatchAugment().draw(MANY, torch.Generator().manual_seed(0))


def views(count=6, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, size, size + 2, 3)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def at(augment, *key):
    augment.restart(*key)
    return augment


@pytest.mark.parametrize(
    ("name", "probability"),
    [("flip", 0.5), ("jitter", 0.8), ("gray", 0.2), ("blur", 0.5)],
)
def test_operations_happen_as_often_as_in_simclr(parameters, name, probability):
    happened = getattr(parameters, name).float().mean()
    four_sigma = 4 * math.sqrt(probability * (1 - probability) / MANY)
    assert abs(happened - probability) < four_sigma


def test_factors_are_distributed_as_torchvisions(parameters):
    theirs = [
        ColorJitter.get_params((0.2, 1.8), (0.2, 1.8), (0.2, 1.8), (-0.2, 0.2))[1:]
        for _ in range(4000)
    ]
    for ours, samples in zip(parameters.factors.T, np.array(theirs).T, strict=True):
        assert stats.ks_2samp(ours.numpy(), samples).pvalue > 1e-4


def test_sigma_is_uniform(parameters):
    uniform = stats.uniform(loc=0.1, scale=1.9)
    assert stats.kstest(parameters.sigma.numpy(), uniform.cdf).pvalue > 1e-4


def test_all_orders_are_equally_likely_and_differ_within_a_batch(parameters):
    orders, counts = parameters.order.unique(dim=0, return_counts=True)
    assert len(orders) == 24
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_operations_are_drawn_independently(parameters):
    flip, jitter, _, factors, gray, blur, sigma = parameters
    columns = [flip, jitter, gray, blur, *factors.T, sigma]
    correlation = torch.corrcoef(torch.stack([c.float() for c in columns]))
    off_diagonal = correlation - torch.eye(len(columns))
    assert off_diagonal.abs().max() < 5 / math.sqrt(MANY)


def test_the_order_of_the_jitter_is_followed():
    augment = BatchAugment(mean=None, std=None)
    drawn = augment.draw(1, torch.Generator().manual_seed(0))
    images = views(1).permute(0, 3, 1, 2)
    off = torch.zeros(1, dtype=torch.bool)
    drawn = drawn._replace(
        flip=off,
        gray=off,
        blur=off,
        jitter=~off,
        factors=torch.tensor([[1.7, 0.4, 1.5, 0.1]]),
    )
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]):
        expected = images.float()
        for which in order:
            adjust = ADJUSTMENTS[which]
            expected = adjust(expected, drawn.factors[:, which])
        ours = apply_augment(images, drawn._replace(order=torch.tensor([order])))
        torch.testing.assert_close(ours, expected)


def test_an_image_does_not_depend_on_its_batch(monkeypatch):
    augment = BatchAugment()
    images = views(7)
    monkeypatch.setitem(batch_module.CHUNK, "cpu", 1)
    one_by_one = at(augment, 0, 0, 0)([images])[0]
    pixels = images[0].numel() // 3
    for chunk in (2, 7):
        monkeypatch.setitem(batch_module.CHUNK, "cpu", chunk * pixels)
        together = at(augment, 0, 0, 0)([images])[0]
        torch.testing.assert_close(one_by_one, together, rtol=1e-5, atol=1e-5)


def test_views_and_calls_get_their_own_parameters():
    augment = at(BatchAugment(), 0, 0, 0)
    first, second = augment([views(), views()])
    again, _ = augment([views(), views()])
    assert not torch.equal(first, second)
    assert not torch.equal(first, again)


def test_numbers_follow_from_seed_rank_and_step():
    results = {}
    for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]:
        augment = at(BatchAugment(), *key)
        results[key] = torch.stack([augment([views()])[0] for _ in range(2)])
        torch.manual_seed(key[0] + 7)  # no matter what else draws
        augment = at(BatchAugment(), *key)
        again = torch.stack([augment([views()])[0] for _ in range(2)])
        assert torch.equal(results[key], again)
    kinds = list(results.values())
    for i, one in enumerate(kinds):
        assert not any(torch.equal(one, other) for other in kinds[i + 1 :])


def test_without_restart_the_torch_seed_decides():
    def first(seed):
        torch.manual_seed(seed)
        return BatchAugment()([views()])[0]

    assert torch.equal(first(3), first(3))
    assert not torch.equal(first(3), first(4))


def test_layouts_agree():
    images = views()
    planar = images.permute(0, 3, 1, 2).contiguous()
    ours = at(BatchAugment(channels_last=True), 0, 0, 0)([images])[0]
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, at(BatchAugment(), 0, 0, 0)([planar])[0])


def test_without_operations_it_normalises_rgb():
    augment = BatchAugment(
        flip_prob=0,
        jitter_prob=0,
        grayscale_prob=0,
        blur_prob=0,
        mean=(1, 2, 3),
        std=(4, 5, 6),
    )
    images = views()
    expected = (images.float() - torch.tensor([1, 2, 3])) / torch.tensor([4, 5, 6])
    torch.testing.assert_close(augment([images])[0], expected.permute(0, 3, 1, 2))


def test_flip_mirrors_columns():
    augment = BatchAugment(
        flip_prob=1, jitter_prob=0, grayscale_prob=0, blur_prob=0, mean=None, std=None
    )
    images = views()
    expected = images.flip(2).permute(0, 3, 1, 2).float()
    assert torch.equal(augment([images])[0], expected)


def test_autocast_does_not_cost_precision():
    augment = BatchAugment()
    plain = at(augment, 0, 0, 0)([views()])[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = at(augment, 0, 0, 0)([views()])[0]
    assert torch.equal(plain, inside)


def test_a_checkpoint_holds_nothing_of_it_and_copies_go_on():
    augment = at(BatchAugment(), 0, 0, 0)
    assert augment.state_dict() == {}
    augment([views()])
    copies = [copy.deepcopy(augment), pickle.loads(pickle.dumps(augment))]
    expected = augment([views()])[0]
    for other in copies:
        assert torch.equal(other([views()])[0], expected)


def test_the_input_is_left_alone():
    images = views()
    before = images.clone()
    BatchAugment(flip_prob=1)([images])
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"flip_prob": 1.5}, "flip_prob must be in"),
        ({"blur_prob": -0.1}, "blur_prob must be in"),
        ({"hue": 0.6}, r"hue must be in \[0, 0.5\], got 0.6"),
        ({"contrast": -1}, "contrast must be >= 0"),
        ({"blur_sigma": (0, 1)}, "blur_sigma must be"),
        ({"blur_sigma": (2, 1)}, "blur_sigma must be"),
        ({"mean": None}, "both mean and std"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        BatchAugment(**arguments)


def test_inputs_of_another_kind():
    augment = BatchAugment()
    with pytest.raises(TypeError, match="sequence of batches"):
        augment(views())
    with pytest.raises(TypeError, match="uint8"):
        augment([views().float()])
    with pytest.raises(ValueError, match=r"\(N, H, W, 3\)"):
        augment([views()[..., 0]])
