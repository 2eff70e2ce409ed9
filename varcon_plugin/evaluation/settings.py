"""How the protocols are run."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from varcon_plugin.evaluation.corruption import SEVERITIES
from varcon_plugin.evaluation.few_shot import SHOTS
from varcon_plugin.evaluation.images import Splits
from varcon_plugin.evaluation.transfer import MetricName

__all__ = ["PROTOCOLS", "Settings"]

PROTOCOLS = (
    "knn",
    "linear",
    "class-mean",
    "few-shot",
    "clustering",
    "corruption",
    "transfer",
)


@dataclass(frozen=True)
class Settings:
    """Settings of the protocols; the defaults are those of the docs.

    Attributes:
        ks: neighbours of k-NN.
        temperatures: of its votes.
        shots: labelled images for each class, of few-shot.
        draws: how often they are drawn.
        imagenet_c: folder of the released ImageNet-C images; None corrupts the test
            images on the fly.
        extra_corruptions: evaluate the four extra corruptions too.
        severities: of the corruptions generated on the fly.
        transfers: the datasets to transfer to.
        transfer_metric: None takes the customary one of each dataset.
        seed: of everything random.
        batch_size: images for each process at a time.
        workers: processes that read images, for each process.
        device: where to encode and to compute.
        amp: mixed precision of the encoder on a GPU.
    """

    ks: tuple[int, ...] = (10, 20, 100, 200)
    temperatures: tuple[float, ...] = (0.07, 0.1)
    shots: tuple[int, ...] = SHOTS
    draws: int = 5
    imagenet_c: Path | None = None
    extra_corruptions: bool = False
    severities: tuple[int, ...] = SEVERITIES
    transfers: tuple[Splits, ...] = ()
    transfer_metric: MetricName | None = None
    seed: int = 0
    batch_size: int = 256
    workers: int = 0
    device: str = "cpu"
    amp: bool = True

    def as_dict(self) -> dict[str, Any]:
        """The settings as the report holds them."""
        found = {item.name: getattr(self, item.name) for item in fields(self)}
        found["transfers"] = [splits.name for splits in self.transfers]
        found["imagenet_c"] = None if self.imagenet_c is None else str(self.imagenet_c)
        return found
