"""One folder, or one name, is the same images and class ids to every tool."""

import numpy as np
import pytest
import torchvision.datasets
from mmengine.registry import init_default_scope
from mmpretrain.registry import DATASETS
from PIL import Image

import varcon_plugin.mmpretrain  # noqa: F401  registers ImageFolder
from varcon_plugin.commands import evaluate, train_lightly
from varcon_plugin.evaluation.sources import folder
from varcon_plugin.lightly.data import create_datasets


def fill(root, **classes):
    """``root`` with a few images of each class of each split."""
    for split, names in classes.items():
        for name in names:
            target = root / split / name
            target.mkdir(parents=True)
            for index in range(2):
                Image.new("RGB", (8, 8)).save(target / f"{index}.png")


def ids_in_mmpretrain(root, split):
    init_default_scope("mmpretrain")
    config = {"type": "ImageFolder", "data_root": str(root), "split": split}
    return DATASETS.build(config | {"pipeline": []}).get_gt_labels().tolist()


@pytest.mark.parametrize("name", ["val", "test", "validation"])
def test_class_ids_are_those_of_training_whatever_the_split_is_called(tmp_path, name):
    fill(tmp_path, train=("cat", "dog", "emu"), **{name: ("dog", "emu")})
    expected = [1, 1, 2, 2]
    assert ids_in_mmpretrain(tmp_path, "val") == expected
    assert ids_in_mmpretrain(tmp_path, "test") == expected
    assert create_datasets(str(tmp_path)).val_targets == expected
    assert folder(tmp_path).test.labels.tolist() == expected


def test_a_class_that_training_lacks_is_an_error_everywhere(tmp_path):
    fill(tmp_path, train=("cat",), val=("cat", "yak"))
    for read in (
        lambda: ids_in_mmpretrain(tmp_path, "val"),
        lambda: create_datasets(str(tmp_path)),
        lambda: folder(tmp_path),
    ):
        with pytest.raises(
            ValueError, match=r"1 classes that the training split .*yak"
        ):
            read()


class FakeCIFAR:
    """Two images a split, and where they would be."""

    classes = ("a", "b", "c")
    targets = (2, 0)
    data = np.zeros((2, 32, 32, 3), np.uint8)

    def __init__(self, root, train, download):
        asked.append((root, train, download))


asked = []


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_a_name_for_evaluation_too(monkeypatch, tmp_path, name):
    monkeypatch.setattr(torchvision.datasets, name.upper(), FakeCIFAR)
    asked.clear()
    command = ["timm:resnet18", "WEIGHTS", "--out", "DIR", "--data", name]
    args = evaluate.parse_args([*command, "--download-dir", str(tmp_path)])
    splits = evaluate.read_data(args.data, args)
    assert asked == [
        (str(tmp_path), True, True),
        (str(tmp_path), False, True),
    ]
    assert splits.train.labels.tolist() == [2, 0]
    assert splits.test.items[0].shape == (32, 32, 3)
    assert splits.name == name
    assert train_lightly.parse_args(["--data", name]).stem == "cifar"


def test_a_name_that_is_none_lists_those_that_are(tmp_path):
    command = ["timm:resnet18", "WEIGHTS", "--out", "DIR", "--data", "cifar"]
    args = evaluate.parse_args(command)
    for read in (
        lambda: evaluate.read_data(args.data, args),
        lambda: create_datasets("cifar"),
    ):
        with pytest.raises(
            ValueError, match=r'data must be "digits", "cifar10", "cifar'
        ):
            read()
