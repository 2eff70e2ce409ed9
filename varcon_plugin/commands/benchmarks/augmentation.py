"""Does training see a difference between mmpretrain's augmentation and ours?

    python tools/benchmarks/compare_augmentation.py FOLDER

FOLDER holds train/<class>/* and test/<class>/* of small images. A quarter-width
ResNet-18 with a CIFAR stem trains with VarCon for each seed, once on mmpretrain's
SimCLR pipeline and once on `TwoCrops` with `BatchAugment`, everything else equal;
printed is the weighted k-NN accuracy of its features on the test images.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mmpretrain
import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.models import ResNet_CIFAR
from mmpretrain.registry import TRANSFORMS
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from varcon_plugin import VarConLoss
from varcon_plugin.evaluation.knn import knn_accuracy
from varcon_plugin.training import BatchAugment
from varcon_plugin.training.crops import TwoCrops

SIZE, WIDTH, BATCH, LR = 32, 16, 128, 0.1
K, TEMPERATURE = 20, 0.07  # DINO's k-NN evaluation
STOCK = ".mim/configs/_base_/datasets/imagenet_bs32_simclr.py"
Views = Callable[[list[Tensor]], list[Tensor]]


class Encoder(nn.Module):
    """ResNet-18 of a quarter of the width, 3x3 stem, with SimCLR's two-layer head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = ResNet_CIFAR(18, base_channels=WIDTH, stem_channels=WIDTH)
        features = 8 * WIDTH
        self.head = nn.Sequential(
            nn.Linear(features, features), nn.ReLU(), nn.Linear(features, 128)
        )

    def pooled(self, images: Tensor) -> Tensor:
        """Features (N, F)."""
        features: Tensor = self.backbone(images)[-1].mean(dim=(2, 3))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings (N, 128)."""
        embeddings: Tensor = self.head(self.pooled(images))
        return embeddings


def stock(augment: BatchAugment) -> tuple[Callable[[str], Any], Views]:
    """The pipeline of mmpretrain in the workers; only normalisation on the batch."""
    init_default_scope("mmpretrain")
    config = Config.fromfile(Path(mmpretrain.__file__).parent / STOCK)
    config.view_pipeline[0].scale = SIZE
    config.train_pipeline[1].transforms = [config.view_pipeline]
    steps = [TRANSFORMS.build(step) for step in config.train_pipeline]

    def views(path: str) -> list[Tensor]:
        packed: list[Tensor] = Compose(steps)({"img_path": path})["inputs"]
        return packed

    assert augment.mean is not None
    assert augment.std is not None
    mean, std = (torch.tensor(x)[:, None, None] for x in (augment.mean, augment.std))

    def normalise(batch: list[Tensor]) -> list[Tensor]:
        return [(view.flip(1).float() - mean) / std for view in batch]

    return views, normalise


def ours(augment: BatchAugment) -> tuple[Callable[[str], Any], Views]:
    """Crops in the workers, the rest on the batch."""
    return TwoCrops(SIZE), augment


def train(folder: Path, pipeline: Any, seed: int, epochs: int, images: int) -> Encoder:
    """A new encoder, trained."""
    torch.manual_seed(seed)
    model, augment, criterion = Encoder(), BatchAugment(), VarConLoss()
    in_worker, on_batch = pipeline(augment)
    data = ImageFolder(str(folder), loader=str, transform=in_worker)
    data.samples = thinned(data.samples, data.targets, images)
    loader = DataLoader(
        data,
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=1,
        worker_init_fn=seed_numpy,
    )
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=0.9, weight_decay=1e-4)
    steps = epochs * len(loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, steps, pct_start=0.1)
    name = f"{pipeline.__name__}, seed {seed}"
    for _ in track(range(epochs), name, transient=True):
        for views, labels in loader:
            batch = on_batch(views)
            loss = criterion(model(torch.cat(batch)), labels.repeat(len(batch)))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return model


def thinned(samples: list[Any], targets: list[int], images: int) -> list[Any]:
    """The first ``images`` samples of each class."""
    kept = {
        c: [i for i, t in enumerate(targets) if t == c][:images] for c in set(targets)
    }
    return [samples[i] for rows in kept.values() for i in rows]


def seed_numpy(worker: int) -> None:
    """For transforms that draw from numpy, as mmpretrain's do."""
    np.random.seed(torch.initial_seed() % 2**32)  # noqa: NPY002
    torch.set_num_threads(1)


@torch.no_grad()
def features(model: Encoder, folder: Path) -> tuple[Tensor, Tensor]:
    """Backbone features (N, F) of whole images, and labels (N,)."""
    model.eval()
    whole = TwoCrops(SIZE, scale=(1, 1), num_views=1)
    data = ImageFolder(str(folder), loader=str, transform=whole)
    off = BatchAugment(flip_prob=0, jitter_prob=0, grayscale_prob=0, blur_prob=0)
    pairs = [
        (model.pooled(off(views)[0]), labels) for views, labels in DataLoader(data, 500)
    ]
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


def main() -> None:
    """Train, evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument(
        "--images", type=int, default=1000, help="of each class to train"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    warnings.filterwarnings("ignore", "Only use 'alpha'")
    console = Console()
    results: dict[str, list[float]] = {"stock": [], "ours": []}
    for seed in args.seeds:
        for pipeline in (stock, ours):
            model = train(
                args.folder / "train", pipeline, seed, args.epochs, args.images
            )
            bank, test = (features(model, args.folder / s) for s in ("train", "test"))
            found = knn_accuracy(*bank, *test, ks=[K], temperatures=[TEMPERATURE])
            top1 = found[K, TEMPERATURE].top1
            results[pipeline.__name__].append(top1)
            console.print(f"{pipeline.__name__}, seed {seed}: {top1:.1f} %")
    table = Table("augmentation", *(f"seed {seed}" for seed in args.seeds), "mean")
    for name, values in results.items():
        mean = statistics.mean(values)
        table.add_row(name, *(f"{value:.1f}" for value in values), f"{mean:.1f}")
    console.print(table)
