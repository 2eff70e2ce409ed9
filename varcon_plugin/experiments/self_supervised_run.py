"""Train and measure one cell of the study without labels."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from varcon_plugin.evaluation.knn import knn_vote, nearest_neighbors
from varcon_plugin.evaluation.linear import linear_probe
from varcon_plugin.evaluation.metrics import topk_accuracy
from varcon_plugin.experiments.self_supervised import DIM, METHODS, Cell
from varcon_plugin.health.latent_classes import LatentClassMonitor, mutual_information
from varcon_plugin.self_supervised import (
    SelfSupervisedTerms,
    SelfSupervisedVarConLoss,
)
from varcon_plugin.training.batch_augment import BatchAugment

__all__ = ["Pixels", "Run", "SmallNetwork", "random_crops"]

MEAN, STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)  # of CIFAR-10, in [0, 255]
WIDTHS = (32, 128, 128)
CHUNK = 1000
K, KNN_TEMPERATURE = 20, 0.07
REGULARISATIONS = (0.01, 0.1, 1.0)


class Pixels(NamedTuple):
    """Images to train on and to measure on: uint8 (N, 3, 32, 32) and labels (N,)."""

    train: Tensor
    labels: Tensor
    test: Tensor
    truth: Tensor


class SmallNetwork(nn.Module):
    """Three convolutions to 128 features, and a two-layer projection head."""

    def __init__(self) -> None:
        super().__init__()
        first, second, third = WIDTHS
        self.backbone = nn.Sequential(
            *convolution(3, first, size=4, stride=2),
            *convolution(first, second, size=4, stride=2),
            *convolution(second, third, size=3, stride=1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Sequential(
            nn.Linear(third, 2 * third),
            nn.BatchNorm1d(2 * third),
            nn.ReLU(),
            nn.Linear(2 * third, DIM),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings (N, 128) of normalised images (N, 3, 32, 32)."""
        embeddings: Tensor = self.head(self.backbone(images))
        return embeddings


def convolution(inputs: int, width: int, size: int, stride: int) -> list[nn.Module]:
    """Convolution, BatchNorm, ReLU."""
    return [
        nn.Conv2d(inputs, width, size, stride, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    ]


def random_crops(images: Tensor, generator: torch.Generator) -> Tensor:
    """Crops of 20 to 100 % of the area of each image, resized to its size; uint8.

    Aspect ratio in [3/4, 4/3], log-uniform; bilinear.
    """
    num = len(images)
    area, ratio, x, y = torch.rand(4, num, generator=generator)
    stretch = (math.log(4 / 3) * (2 * ratio - 1)).exp()
    area = 0.2 + 0.8 * area
    width, height = (area * stretch).sqrt(), (area / stretch).sqrt()
    width, height = width.clamp(max=1), height.clamp(max=1)
    boxes = torch.zeros(num, 2, 3)
    boxes[:, 0, 0], boxes[:, 1, 1] = width, height
    boxes[:, 0, 2] = (2 * x - 1) * (1 - width)
    boxes[:, 1, 2] = (2 * y - 1) * (1 - height)
    grid = F.affine_grid(boxes, list(images.shape), align_corners=False)
    crops = F.grid_sample(
        images.float(), grid, padding_mode="border", align_corners=False
    )
    return crops.round().to(torch.uint8)


class Run:
    """The training of one cell, and what comes of it.

    Attributes:
        model: that is trained.
        curve: (epoch, k-NN top-1 in percent) so far.
    """

    def __init__(self, cell: Cell, pixels: Pixels) -> None:
        torch.manual_seed(cell.seed)
        self.cell, self.pixels = cell, pixels
        self.method, self.setting = METHODS[cell.method], cell.setting
        self.generator = torch.Generator().manual_seed(cell.seed)
        self.augment = BatchAugment(
            brightness=0.4,
            contrast=0.4,
            saturation=0.4,
            hue=0.1,
            blur_prob=0.0,
            mean=MEAN,
            std=STD,
            channels_last=True,
        )
        self.augment.restart(cell.seed, 0, 0)
        self.model = SmallNetwork()
        self.model.to(memory_format=torch.channels_last)
        self.teacher = None
        if self.method.teacher:
            average = get_ema_multi_avg_fn(self.method.teacher)  # type: ignore[no-untyped-call]
            self.teacher = AveragedModel(self.model, multi_avg_fn=average)
        self.per_epoch = self.setting.images // self.setting.batch_size
        steps = self.setting.epochs * self.per_epoch
        self.criterion = self.method.criterion(steps)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=cell.learning_rate,
            momentum=0.9,
            nesterov=True,
            weight_decay=5e-4,
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            cell.learning_rate,
            total_steps=steps,
            pct_start=max(0.2, 1.5 / steps),  # ends after the first step, not in it
        )
        self.terms: SelfSupervisedTerms | None = None
        self.curve: list[tuple[int, float]] = []
        self.latent: dict[str, float] = {}

    def result(self) -> dict[str, Any]:
        """Train all epochs; the last one counts."""
        start = time.monotonic()
        for epoch in range(1, self.setting.epochs + 1):
            loss = self._epoch()
            if epoch in self.setting.points:
                self.curve.append((epoch, self._knn()))
        pixels, (train, test) = self.pixels, self.features()
        probe = linear_probe(
            train, pixels.labels, test, pixels.truth, cs=REGULARISATIONS
        )
        return {
            **asdict(self.cell),
            "method_settings": asdict(self.method),
            "loss": loss,
            "knn": self.curve[-1][1],
            "linear": probe.top1,
            "curve": self.curve,
            "latent": self.latent,
            "seconds": round(time.monotonic() - start, 1),
        }

    def features(self) -> tuple[Tensor, Tensor]:
        """Of the training and of the test images."""
        return encode(self.model, self.pixels.train), encode(
            self.model, self.pixels.test
        )

    def _epoch(self) -> float:
        monitor = None
        if self.method.kind == "both":
            assert isinstance(self.criterion, SelfSupervisedVarConLoss)
            monitor = LatentClassMonitor(self.criterion)
        found, truth = [], []
        order = torch.randperm(self.setting.images, generator=self.generator)
        images = self.per_epoch * self.setting.batch_size
        for rows in torch.split(order[:images], self.setting.batch_size):
            loss = self._step(rows)
            if monitor is not None and self.terms is not None:
                monitor.add(self.terms)
                if self.terms.assignment is not None:
                    found.append(self.terms.assignment.own)
                    truth.append(self.pixels.labels[rows].repeat(2))
        if monitor is not None:
            self.latent = monitor.report()
            nmi = mutual_information(torch.cat(found), torch.cat(truth))
            self.latent["nmi"] = nmi
        return loss

    def _step(self, rows: Tensor) -> float:
        images = self.pixels.train[rows]
        crops = [random_crops(images, self.generator) for _ in range(2)]
        views = torch.cat(self.augment(crops))
        told: list[Tensor] = []
        with torch.autocast("cpu", torch.bfloat16):
            embeddings = list(self.model(views).float().chunk(2))
            if self.teacher is not None:
                with torch.no_grad():
                    told = list(self.teacher(views).float().chunk(2))
        loss = self._loss(embeddings, told, rows)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.schedule.step()
        if self.teacher is not None:
            self.teacher.update_parameters(self.model)
        return float(loss.detach())

    def _loss(self, views: list[Tensor], told: list[Tensor], rows: Tensor) -> Tensor:
        """Only the supervised method reads the labels."""
        loss: Tensor
        if isinstance(self.criterion, SelfSupervisedVarConLoss):
            terms = self.criterion.forward_components(*views, teacher=told or None)
            self.terms, loss = terms, terms.loss
        elif self.method.kind == "supervised":
            loss = self.criterion(torch.cat(views), self.pixels.labels[rows].repeat(2))
        elif told:
            back = self.criterion(views[1], told[0])
            loss = (self.criterion(views[0], told[1]) + back) / 2
        else:
            loss = self.criterion(*views)
        return loss

    def _knn(self) -> float:
        train, test = self.features()
        neighbors = nearest_neighbors(train, self.pixels.labels, test, K)
        classes = int(self.pixels.labels.max()) + 1
        votes = knn_vote(neighbors, classes, k=K, temperature=KNN_TEMPERATURE)
        return topk_accuracy(votes, self.pixels.truth).top1


@torch.no_grad()
def encode(model: SmallNetwork, images: Tensor) -> Tensor:
    """Features (N, 128) of uint8 images, running statistics of BatchNorm."""
    model.eval()
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (MEAN, STD))
    features = []
    for chunk in torch.split(images, CHUNK):
        normal = ((chunk.float() - mean) / std).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            features.append(model.backbone(normal).float())
    model.train()
    return torch.cat(features)
