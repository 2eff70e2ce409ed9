from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import Trainer
from torch.utils.data import DataLoader, Dataset

from varcon_plugin.lightly import VarCon

CLASSES = 4


class Views(Dataset):
    """Fixed noise around a class pattern: ``views`` images, or one for validation."""

    def __init__(self, images=32, views=2, size=32, items=3):
        generator = torch.Generator().manual_seed(0)
        self.targets = [index % CLASSES for index in range(images)]
        pattern = 2 * torch.randn(CLASSES, 1, 3, size, size, generator=generator)
        noise = torch.randn(images, max(views, 1), 3, size, size, generator=generator)
        self.images = pattern[self.targets] + noise
        self.views, self.items = views, items

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        views = list(self.images[index])
        item = (views if self.views else views[0], self.targets[index], f"{index}.png")
        return item[: self.items]


@pytest.fixture
def loader():
    """``loader(images=, views=, batch_size=, items=)``; 0 views is validation data."""

    def build(batch_size=16, **kwargs):
        return DataLoader(Views(**kwargs), batch_size)

    return build


@pytest.fixture
def varcon():
    """``varcon(**arguments)``: a small VarCon, the same every time."""

    def build(**kwargs):
        torch.manual_seed(0)
        arguments = {
            "batch_size_per_device": 16,
            "num_classes": CLASSES,
            "knn_k": 5,
            "knn_t": 0.1,
            "backbone": "test_resnet",
        }
        return VarCon(**{**arguments, **kwargs})

    return build


@pytest.fixture
def fit(tmp_path):
    """``fit(model, *loaders, **arguments of the Trainer)``: the Trainer afterwards."""

    def run(model, *loaders, ckpt_path=None, **kwargs):
        arguments = {
            "max_epochs": 2,
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
        }
        trainer = Trainer(**{**arguments, **kwargs})
        trainer.fit(model, *loaders, ckpt_path=ckpt_path, weights_only=True)
        return trainer

    return run


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """Two colours, twelve noisy images of each to train and four to validate."""
    root = tmp_path_factory.mktemp("folder")
    random = np.random.default_rng(0)
    for split, images in (("train", 12), ("val", 4)):
        for name, colour in (("blue", (0, 0, 160)), ("red", (160, 0, 0))):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(images):
                pixels = random.integers(0, 90, (48, 40, 3)) + np.array(colour)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return root
