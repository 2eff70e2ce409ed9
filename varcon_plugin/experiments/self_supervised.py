"""Methods without labels, compared at equal network, augmentation, batch and epochs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightly.loss import NTXentLoss
from torch import nn

from varcon_plugin.loss import VarConLoss
from varcon_plugin.pseudo_labels import PseudoLabels
from varcon_plugin.self_supervised import SelfSupervisedVarConLoss

__all__ = ["DIM", "METHODS", "Cell", "Method", "Setting"]

DIM = 128  # of the embeddings
MEMORY = 4096  # of MoCo


@dataclass(frozen=True)
class Method:
    """An objective and its settings.

    Attributes:
        kind: ``ntxent``: lightly's NTXentLoss, with a memory bank if there is a
            teacher (MoCo). ``image``: each image its own class. ``both``: and latent
            classes. ``supervised``: `VarConLoss` with the labels.
        temperature: tau_1.
        epsilon: of VarCon.
        classes: latent ones.
        sharpness: of the pseudo-labels.
        weight: of the latent classes.
        after: share of the run after which they count.
        teacher: momentum of the teacher; 0 is none.
        queue: of the pseudo-labels.
        chosen_as: the method whose learning rate it takes; empty is its own.
    """

    kind: Literal["ntxent", "image", "both", "supervised"]
    temperature: float = 0.1
    epsilon: float = 0.02
    classes: int = 100
    sharpness: float = 0.05
    weight: float = 0.25
    after: float = 1 / 3
    teacher: float = 0.0
    queue: int = 0
    chosen_as: str = ""

    def criterion(self, steps: int) -> nn.Module:
        """The loss of a run of so many steps."""
        if self.kind == "ntxent":
            bank = (MEMORY, DIM) if self.teacher else 0
            ntxent: nn.Module = NTXentLoss(self.temperature, memory_bank_size=bank)
            return ntxent
        if self.kind == "supervised":
            return VarConLoss(self.temperature, self.epsilon)
        labels = None
        if self.kind == "both":
            labels = PseudoLabels(
                self.classes, DIM, sharpness=self.sharpness, queue_size=self.queue
            )
        return SelfSupervisedVarConLoss(
            self.temperature,
            self.epsilon,
            pseudo_labels=labels,
            latent_weight=self.weight,
            latent_after=round(self.after * steps),
        )


IMAGE, BOTH = "image as a class", "image and latent classes"
METHODS = {
    "SimCLR": Method("ntxent"),
    "SimCLR, temperature 0.2": Method("ntxent", temperature=0.2),
    IMAGE: Method("image"),
    BOTH: Method("both"),
    "MoCo": Method("ntxent", teacher=0.99),
    "supervised VarCon": Method("supervised"),
    "image, epsilon 0": Method("image", epsilon=0.0, chosen_as=IMAGE),
    "both, epsilon 0": Method("both", epsilon=0.0, chosen_as=BOTH),
    "both, teacher": Method("both", teacher=0.99, chosen_as=BOTH),
    "both, queue": Method("both", queue=2048, chosen_as=BOTH),
    "both, 32 classes": Method("both", classes=32, chosen_as=BOTH),
    "both, sharpness 0.1": Method("both", sharpness=0.1, chosen_as=BOTH),
    "both, sharpness 0.02": Method("both", sharpness=0.02, chosen_as=BOTH),
    "both, weight 1 from the start": Method(
        "both", weight=1.0, after=0.0, chosen_as=BOTH
    ),
}


@dataclass(frozen=True)
class Setting:
    """What all methods share.

    Attributes:
        images: that are trained on.
        epochs: of them.
        batch_size: images a step, two views each.
        points: epochs after which k-NN is measured.
    """

    images: int = 6000
    epochs: int = 6
    batch_size: int = 512
    points: tuple[int, ...] = (2, 4, 6)


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        method: a key of `METHODS`.
        setting: of the run.
        learning_rate: peak, of SGD.
        seed: of everything.
    """

    method: str
    setting: Setting
    learning_rate: float
    seed: int
