from collections import Counter

import pytest
import torch
from torch.utils.data import DataLoader

from varcon_plugin.training.sampler import ClassBalancedSampler

LABELS = [c for c in range(6) for _ in range(3 + 4 * c)]  # 3 to 23 images a class


def batches(sampler, size):
    return list(DataLoader(range(len(LABELS)), batch_size=size, sampler=sampler))


def test_every_batch_has_p_classes_with_k_images():
    sampler = ClassBalancedSampler(LABELS, 3, 4, num_batches=20)
    found = batches(sampler, 12)
    assert len(found) == 20
    assert len(sampler) == 240
    for batch in found:
        counts = Counter(LABELS[i] for i in batch.tolist())
        assert sorted(counts.values()) == [4, 4, 4]


def test_images_of_a_class_repeat_only_after_all_have_come():
    sampler = ClassBalancedSampler(LABELS, 6, 2, num_batches=40)
    seen = Counter(list(sampler))
    for c in range(6):
        counts = [seen[i] for i, label in enumerate(LABELS) if label == c]
        assert max(counts) - min(counts) <= 1


def test_no_image_is_twice_in_a_batch_but_of_a_class_too_small():
    sampler = ClassBalancedSampler(LABELS, 2, 5, num_batches=60)
    for batch in batches(sampler, 10):
        images = Counter(batch.tolist())
        small = {i for i in images if LABELS[i] == 0}  # a class of 3 images
        assert {images[i] for i in set(images) - small} <= {1}
        assert not small or sorted(images[i] for i in small) == [1, 2, 2]


def test_every_class_comes_before_any_comes_again():
    sampler = ClassBalancedSampler(LABELS, 4, 2, num_batches=30)
    counts = Counter()
    for batch in batches(sampler, 8):
        counts.update({LABELS[i] for i in batch.tolist()})
        seen = [counts[c] for c in range(6)]
        assert max(seen) - min(seen) <= 1


def test_a_loader_with_another_batch_size_is_refused():
    sampler = ClassBalancedSampler(LABELS, 3, 4)
    with pytest.raises(ValueError, match=r"images_per_class = 12, got 10"):
        batches(sampler, 10)


def test_classes_come_about_equally_often():
    sampler = ClassBalancedSampler(LABELS, 2, 3, num_batches=30)
    counts = Counter(LABELS[i] for i in sampler)
    assert max(counts.values()) - min(counts.values()) <= 2 * 3


def test_ranks_share_each_global_batch():
    whole = batches(ClassBalancedSampler(LABELS, 4, 2, num_batches=9), 8)
    shares = [
        batches(
            ClassBalancedSampler(
                LABELS, 4, 2, num_batches=9, num_replicas=2, rank=rank
            ),
            4,
        )
        for rank in range(2)
    ]
    for batch, one, other in zip(whole, *shares, strict=True):
        assert sorted(batch.tolist()) == sorted(one.tolist() + other.tolist())


def test_order_follows_from_seed_and_epoch():
    def order(seed, epoch):
        sampler = ClassBalancedSampler(LABELS, 3, 2, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 1) == order(0, 1)
    assert order(0, 0) != order(0, 1)
    assert order(0, 1) != order(1, 1)


def test_an_epoch_has_as_many_images_as_the_dataset_by_default():
    sampler = ClassBalancedSampler(torch.tensor(LABELS), 4, 2)
    assert len(LABELS) - 8 < len(list(sampler)) <= len(LABELS)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, 2), {}, "classes_per_batch must be >= 1, got 0"),
        ((2, 0), {}, "images_per_class must be >= 1, got 0"),
        ((2, 2), {"num_batches": 0}, "num_batches must be >= 1, got 0"),
        ((7, 2), {}, "at most the number of classes, 6, got 7"),
        ((3, 3), {"num_replicas": 2, "rank": 0}, "= 9 must be a multiple of .* 2"),
        ((2, 2), {"num_replicas": 2}, "rank must be given together.*got 2 and None"),
        ((2, 2), {"num_replicas": 2, "rank": 2}, "rank < num_replicas, got 2 and 2"),
    ],
)
def test_arguments_out_of_range(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        ClassBalancedSampler(LABELS, *arguments, **options)
