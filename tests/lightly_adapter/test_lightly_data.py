import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from varcon_plugin.lightly import data
from varcon_plugin.lightly.data import Digits, create_datasets, digits_transform
from varcon_plugin.training.digits import load_digits_split


def test_digits_are_the_shared_split_as_rgb_images():
    images, labels = load_digits_split("test")
    digits = Digits("test")
    image, target = digits[7]
    assert (len(digits), image.size, image.mode) == (450, (8, 8), "RGB")
    assert image.getpixel((3, 2)) == (images[7][2, 3],) * 3
    assert (target, digits.targets) == (labels[7], labels.tolist())


def test_digits_give_two_different_views_and_a_label():
    datasets = create_datasets("digits")
    views, targets = next(iter(DataLoader(datasets.train, 4)))
    assert [view.shape for view in views] == [(4, 3, 32, 32)] * 2
    assert not torch.equal(*views)
    assert targets.tolist() == datasets.bank_targets[:4]
    assert datasets.num_classes == 10


def test_digits_are_never_mirrored():
    flips = digits_transform().transforms[0].transform.transforms[1]
    assert type(flips).__name__ == "RandomHorizontalFlip"
    assert flips.p == 0


def test_evaluation_images_are_the_same_every_time():
    datasets = create_datasets("digits")
    assert torch.equal(datasets.bank[0][0], datasets.bank[0][0])
    assert datasets.val[0][0].shape == (3, 32, 32)


def test_a_folder_gives_views_targets_and_filenames(image_folder):
    datasets = create_datasets(str(image_folder), image_size=48)
    views, targets, filenames = next(iter(DataLoader(datasets.train, 24)))
    assert [view.shape for view in views] == [(24, 3, 48, 48)] * 2
    assert targets.tolist() == datasets.bank_targets == [0] * 12 + [1] * 12
    assert filenames[0] == "blue/0.png"
    assert datasets.val_targets == [0] * 4 + [1] * 4
    assert datasets.val[0][0].shape == (3, 48, 48)
    assert datasets.num_classes == 2


def test_large_images_lose_an_eighth_at_the_border_and_small_ones_nothing():
    small, large = (data.resize_and_crop(size) for size in (32, 224))
    assert (small[0].size, small[1].size) == (32, (32, 32))
    assert (large[0].size, large[1].size) == (256, (224, 224))


def test_the_classes_of_a_folder_are_those_of_train(image_folder, tmp_path):
    with pytest.raises(ValueError, match=r'"cifar100" or a folder.*not found: .*train'):
        create_datasets(str(tmp_path))
    for split, name in (("train", "cat"), ("train", "dog"), ("val", "dog")):
        (tmp_path / split / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / split / name / "0.png")
    assert create_datasets(str(tmp_path)).val_targets == [1]
    (tmp_path / "val" / "emu").mkdir()
    with pytest.raises(ValueError, match=r"1 classes that the training .*emu"):
        create_datasets(str(tmp_path))


def test_cifar_comes_from_torchvision(monkeypatch, tmp_path):
    class FakeCIFAR:
        classes = ("a", "b", "c")
        targets = (0, 1, 2)

        def __init__(self, root, train, transform, download=False):
            self.transform = transform
            self.arguments = (root, train, download)

        def __getitem__(self, index):
            return self.transform(Image.new("RGB", (32, 32))), index

    monkeypatch.setattr(data, "CIFAR100", FakeCIFAR)
    datasets = create_datasets("cifar100", download_dir=tmp_path)
    assert datasets.train.arguments == (str(tmp_path), True, True)
    assert datasets.bank.arguments == (str(tmp_path), True, False)
    assert datasets.val.arguments == (str(tmp_path), False, False)
    assert [view.shape for view in datasets.train[0][0]] == [(3, 32, 32)] * 2
    assert datasets.val[0][0].shape == (3, 32, 32)
    assert (datasets.num_classes, datasets.image_size) == (3, 32)
