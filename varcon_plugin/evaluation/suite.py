"""All protocols on one encoder and one dataset, into one report."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import varcon_plugin
from varcon_plugin.distributed import (
    active_group,
    gather_equal,
    rank_of,
    text_from_first_rank,
)
from varcon_plugin.evaluation.checks import check_split
from varcon_plugin.evaluation.class_mean import class_mean_predict
from varcon_plugin.evaluation.clustering import NMI_AVERAGE, cluster
from varcon_plugin.evaluation.corruption import (
    COMMON,
    EXTRA,
    FAMILIES,
    SEVERITIES,
    Corruption,
    ReleasedTransform,
    mean_corruption_error,
    read_released,
)
from varcon_plugin.evaluation.features import evaluating, extract_features
from varcon_plugin.evaluation.few_shot import few_shot
from varcon_plugin.evaluation.images import Encoder, ImageDataset, Images, Splits
from varcon_plugin.evaluation.knn import knn_accuracy
from varcon_plugin.evaluation.linear import LinearResult, linear_probe, top1
from varcon_plugin.evaluation.metrics import mean_per_class, topk_accuracy
from varcon_plugin.evaluation.report import SCHEMA_VERSION
from varcon_plugin.evaluation.settings import PROTOCOLS, Settings
from varcon_plugin.evaluation.store import (
    Features,
    export_features,
    fingerprint,
    load_features,
    weights_fingerprint,
)
from varcon_plugin.evaluation.transfer import customary_metric, transfer

__all__ = ["Evaluation"]

REPORTED = ("torch", "numpy", "scipy", "scikit-learn")


@dataclass
class Evaluation:
    """An encoder on a dataset.

    With a process group every rank has to run the same protocols: all encode, rank 0
    computes and has the results; on the others a protocol returns None.

    Attributes:
        encoder: what is evaluated.
        data: what it is evaluated on.
        settings: how.
        cache: folder of the features; they are found again by a fingerprint of weights,
            images and transform. None keeps nothing.
    """

    encoder: Encoder
    data: Splits
    settings: Settings = field(default_factory=Settings)
    cache: Path | None = None

    def run(self, protocol: str) -> dict[str, Any] | None:
        """The results of one of `PROTOCOLS`, as the report holds them."""
        methods: dict[str, Callable[[], dict[str, Any] | None]] = {
            "knn": self.knn,
            "linear": self.linear,
            "class-mean": self.class_mean,
            "few-shot": self.few_shot,
            "clustering": self.clustering,
            "corruption": self.corruption,
            "transfer": self.transfer,
        }
        if protocol not in methods:
            raise ValueError(
                f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}"
            )
        _, test = self.train, self.test  # on every rank, whatever rank 0 finds
        collective = protocol in ("corruption", "transfer")
        return None if test is None and not collective else methods[protocol]()

    @cached_property
    def train(self) -> Features | None:
        """Features of the training split."""
        return self.extract(self.data.train, "train")

    @cached_property
    def test(self) -> Features | None:
        """Features of the test split."""
        return self.extract(self.data.test, "test")

    @cached_property
    def split(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Training features and labels, test features and labels; rank 0 only."""
        assert self.train is not None
        assert self.test is not None
        device = self.settings.device
        train = (self.train.features.to(device), self.train.labels.to(device))
        split = (*train, self.test.features.to(device), self.test.labels.to(device))
        check_split(*split)
        return split

    @cached_property
    def weights(self) -> str:
        """Fingerprint of the encoder's weights."""
        return weights_fingerprint(self.encoder.module)

    @cached_property
    def probe(self) -> LinearResult:
        """The linear probe, which other protocols use too; rank 0 only."""
        return linear_probe(*self.split, seed=self.settings.seed)

    def extract(self, images: Images, title: str) -> Features | None:
        """Features of ``images``, from the cache if they are there; None off rank 0.

        Raises:
            ValueError: on every rank, the file in the cache cannot be used.
        """
        path, about = self.cached(images)
        kept, wrong = stored(path, about)
        wrong = text_from_first_rank(wrong, active_group())
        if wrong:
            raise ValueError(wrong)
        if self.agreed(kept is not None):
            return kept
        rows = self.encode(images, title)
        if rows is None:
            return None
        features = Features(rows, images.labels, images.classes)
        if path is not None:
            export_features(features, path, about)
        return features

    def cached(self, images: Images) -> tuple[Path | None, dict[str, str]]:
        """Where the features of ``images`` would lie, and what describes them."""
        if self.cache is None or rank_of(active_group()) != 0:
            return None, {}
        precision = self.settings.amp and self.settings.device != "cpu"
        about = {
            "weights": self.weights,
            "images": images.fingerprint(),
            "transform": repr(self.encoder.transform),
            "amp": str(precision),
        }
        return self.cache / f"{fingerprint(about)[:32]}.safetensors", about

    def agreed(self, flag: bool) -> bool:
        """What rank 0 says."""
        group = active_group()
        if group is None:
            return flag
        mine = torch.tensor(flag, device=self.settings.device, dtype=torch.uint8)
        return bool(gather_equal(mine, group)[0])

    def encode(
        self, images: Images, title: str, corrupt: Any = None, transform: Any = None
    ) -> Tensor | None:
        """Features (N, D) of ``images``, without the cache; None off rank 0."""
        if len(images.items) == 0:
            raise ValueError(f"the {title} split is empty")
        settings = self.settings
        return extract_features(
            self.encoder.module,
            ImageDataset(images.items, transform or self.encoder.transform, corrupt),
            batch_size=settings.batch_size,
            workers=settings.workers,
            device=settings.device,
            amp=settings.amp,
            title=title,
        )

    def knn(self) -> dict[str, Any]:
        """k-NN for each k and temperature."""
        table = knn_accuracy(
            *self.split, ks=self.settings.ks, temperatures=self.settings.temperatures
        )
        return {
            "results": [
                {"k": k, "temperature": temperature, **accuracy._asdict()}
                for (k, temperature), accuracy in table.items()
            ]
        }

    def linear(self) -> dict[str, Any]:
        """Logistic regression on all training features."""
        probe = self.probe
        return {
            "top1": probe.top1,
            "top5": probe.top5,
            "mean_per_class": mean_per_class(probe.ranked, self.split[3]),
            "C": probe.C,
            "validation": [
                {"C": c, "top1": accuracy}
                for c, accuracy in probe.validation_top1.items()
            ],
        }

    def class_mean(self) -> dict[str, Any]:
        """Nearest class mean, of features and of embeddings if there are any."""
        results = []
        for space, split in self.spaces().items():
            ranked, labels = class_mean_predict(*split), split[3]
            result = {"space": space, **topk_accuracy(ranked, labels)._asdict()}
            results.append(result | {"mean_per_class": mean_per_class(ranked, labels)})
        return {"results": results}

    def spaces(self) -> dict[str, tuple[Tensor, Tensor, Tensor, Tensor]]:
        """`split` of features, and of what the projection head makes of them."""
        spaces = {"features": self.split}
        head = self.encoder.projection
        if head is not None:
            train, train_labels, test, test_labels = self.split
            with evaluating(head.to(self.settings.device)):
                embedded = (head(train), train_labels, head(test), test_labels)
            spaces["embeddings"] = embedded
        return spaces

    def few_shot(self) -> dict[str, Any]:
        """Few labelled images for each class."""
        settings = self.settings
        results = few_shot(
            *self.split, shots=settings.shots, draws=settings.draws, seed=settings.seed
        )
        return {"results": [result._asdict() for result in results]}

    def clustering(self) -> dict[str, Any]:
        """Ward clusters of the test features."""
        features, labels = (tensor.cpu() for tensor in self.split[2:])
        found = cluster(features, labels, seed=self.settings.seed)
        return {"linkage": "ward", "nmi_average": NMI_AVERAGE, **found._asdict()}

    def corruption(self) -> dict[str, Any] | None:
        """Accuracy of the linear probe on corrupted test images."""
        names = COMMON + (EXTRA if self.settings.extra_corruptions else ())
        released = self.settings.imagenet_c is not None
        severities = SEVERITIES if released else self.settings.severities
        rows = []
        for name in names:
            for severity in severities:
                accuracy = self.corrupted_accuracy(name, severity)
                family = next(f for f, members in FAMILIES.items() if name in members)
                rows.append(
                    {
                        "corruption": name,
                        "family": family,
                        "severity": severity,
                        "top1": accuracy,
                    }
                )
        if self.test is None:
            return None
        return {
            "source": "imagenet-c" if released else "generated",
            "classifier": "linear",
            "clean_top1": self.probe.top1,
            "results": rows,
            **corruption_summary(rows, len(self.data.train.classes), released),
        }

    def corrupted_accuracy(self, name: str, severity: int) -> float:
        """Top-1 in percent; NaN off rank 0."""
        title = f"{name} {severity}"
        root = self.settings.imagenet_c
        if root is not None:
            images = read_released(root, name, severity, self.data.train.classes)
            rows = self.encode(images, title, transform=ReleasedTransform())
        else:
            images = self.data.test
            corrupt = Corruption(name, severity, self.settings.seed)
            rows = self.encode(images, title, corrupt)
        if rows is None:
            return math.nan
        return top1(self.probe.classifier.scores(rows), images.labels)

    def transfer(self) -> dict[str, Any] | None:
        """Linear transfer to each of ``settings.transfers``."""
        if not self.settings.transfers:
            raise ValueError("the transfer protocol needs datasets: give --transfer")
        results = []
        for splits in self.settings.transfers:
            named = {"train": splits.train, "test": splits.test}
            if splits.validation is not None:
                named["validation"] = splits.validation
            found = {
                split: self.extract(images, f"{splits.name} {split}")
                for split, images in named.items()
            }
            device = self.settings.device
            pairs = {
                split: (f.features.to(device), f.labels.to(device))
                for split, f in found.items()
                if f is not None
            }
            if not pairs:
                continue
            result = transfer(
                pairs["train"],
                pairs["test"],
                pairs.get("validation"),
                metric=self.settings.transfer_metric
                or customary_metric(splits.name, splits.test.labels),
                seed=self.settings.seed,
            )
            sizes = {split: len(labels) for split, (_, labels) in pairs.items()}
            results.append({"dataset": splits.name, **result._asdict(), **sizes})
        return {"results": results} if results else None

    def report(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """What `write_report` takes, without pictures; rank 0 only.

        Args:
            results: what `run` returned, by protocol.
        """
        assert self.train is not None
        train, test = self.data.train, self.data.test
        module = self.encoder.module
        return {
            "schema_version": SCHEMA_VERSION,
            "model": {
                **self.encoder.about,
                "parameters": sum(p.numel() for p in module.parameters()),
                "dimension": self.train.features.shape[1],
                "fingerprint": self.weights,
            },
            "data": {
                "name": self.data.name,
                "train": len(train.items),
                "test": len(test.items),
                "classes": len(train.classes),
                "transform": repr(self.encoder.transform),
                "fingerprint": fingerprint(
                    train.classes, train.labels.tolist(), test.labels.tolist()
                ),
            },
            "settings": self.settings.as_dict(),
            "software": {
                "varcon_plugin": varcon_plugin.__version__,
                "python": platform.python_version(),
                **{name: version(name) for name in REPORTED},
            },
            "protocols": dict(results),
            "pictures": [],
        }


def stored(path: Path | None, about: dict[str, str]) -> tuple[Features | None, str]:
    """The features at ``path``, None if there are none, and why they cannot be used."""
    if path is None or not path.is_file():
        return None, ""
    try:
        features, found = load_features(path)
    except ValueError as error:
        return None, str(error)
    if found != about:
        return None, f"{path} holds other features than its name says: delete it"
    return features, ""


def corruption_summary(
    rows: list[dict[str, Any]], classes: int, released: bool
) -> dict[str, Any]:
    """Mean accuracies, and the published mCE where it is defined: see the report."""
    common = [row for row in rows if row["family"] != "extra"]
    extra = [row["top1"] for row in rows if row["family"] == "extra"]
    summary: dict[str, Any] = {
        "mean_top1": sum(row["top1"] for row in common) / len(common),
        "mean_top1_extra": sum(extra) / len(extra) if extra else None,
        "mce": None,
        "ce": None,
    }
    if released and classes == 1000:
        errors: dict[str, list[float]] = {}
        for row in common:
            errors.setdefault(row["corruption"], []).append(1 - row["top1"] / 100)
        summary |= mean_corruption_error(errors)._asdict()
    return summary
