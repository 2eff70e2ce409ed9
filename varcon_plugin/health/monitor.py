"""`DiagnosticsMonitor`: measures a run while it trains, for every adapter alike."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from varcon_plugin.centroids import BatchCentroids, References, global_class_sums
from varcon_plugin.distributed import sum_across_ranks
from varcon_plugin.health.failure_signs import FailureSign, FailureSigns, failure_sign
from varcon_plugin.health.histogram import EpochHistogram
from varcon_plugin.health.measures import (
    alignment,
    bound_shares,
    centroid_similarity,
    chance_level,
    classes_in_batch,
    dispersion,
    precise,
    random_confidence,
    singleton_share,
    uniformity,
)
from varcon_plugin.loss import Observation, VarConLoss
from varcon_plugin.self_supervised import SelfSupervisedVarConLoss

__all__ = ["DiagnosticsMonitor", "StepReport", "find_loss", "measure"]

SCALARS = "scalars.jsonl"


class StepReport(NamedTuple):
    """What there is to tell after a step.

    Attributes:
        scalars: measures by name, on the steps that are measured; else None.
        warning: a failure sign that was not told before, or None.
    """

    scalars: dict[str, float] | None
    warning: FailureSign | None


def find_loss(model: nn.Module) -> VarConLoss:
    """The one `VarConLoss` inside ``model``; without labels, that of the images.

    Raises:
        ValueError: there is none, or more than one.
    """
    found = [m for m in model.modules() if isinstance(m, VarConLoss)]
    whole = [m for m in model.modules() if isinstance(m, SelfSupervisedVarConLoss)]
    if len(whole) == 1:
        return whole[0].image_loss
    if len(found) != 1:
        raise ValueError(
            f"diagnostics need exactly one VarConLoss in the model, found {len(found)} "
            f"in {type(model).__name__}"
        )
    return found[0]


class DiagnosticsMonitor:
    """Observes a `VarConLoss` at an interval, keeps what it sees, and warns.

    Call `begin_step`, run the step, call `end_step`; `end_epoch` after each epoch. All
    ranks must call alike: the measures are of the global batch. Between the steps that
    are measured nothing is observed, and nothing costs.

    In ``directory``: ``scalars.jsonl``, a line for each measured step, and
    ``epoch_0010.npz`` for each chosen epoch, with histograms of confidence and tau2
    over all samples of all steps and with the class references of the last step.

    Args:
        loss: the loss that is trained with.
        directory: where to write; None on all ranks but the first.
        interval: steps from one measured step to the next.
        histogram_epochs: the epochs to store, from 1, or every n-th for an int. The
            authors' code stores 10, 50, 100 and 200.
        views: embeddings an image contributes to the batch. None: the rows that the
            loss gets for each of the ``images`` of the first measured `begin_step`, 2
            if it does not say how many they are.
        patience: measured steps in a row that show a failure sign before it is told.
        classes: names by label, for the pictures.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        loss: VarConLoss,
        directory: Path | None,
        *,
        interval: int = 50,
        histogram_epochs: int | Sequence[int] = (10, 50, 100, 200),
        views: int | None = None,
        patience: int = 5,
        classes: Sequence[str] = (),
    ) -> None:
        counts = {"interval": interval, "patience": patience}
        if views is not None:
            counts["views"] = views
        chosen = (
            [histogram_epochs]
            if isinstance(histogram_epochs, int)
            else histogram_epochs
        )
        counts["histogram_epochs"] = min(chosen, default=1)
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.loss = loss
        self.directory = directory
        self.interval = interval
        self.histogram_epochs = histogram_epochs
        self.views = views
        self.classes = classes
        self.signs = FailureSigns(patience)
        self._images: int | None = None
        self._handle: RemovableHandle | None = None
        self._step = 0
        self._measuring = False
        self._scalars: dict[str, float] | None = None
        self._histogram: EpochHistogram | None = None

    def begin_run(self, step: int) -> Path | None:
        """Before the first step: keep what was written up to ``step``, no more.

        Args:
            step: that the run goes on from; 0 for a new one, which finds the folder
                empty.

        Returns:
            Where the files of an earlier run were put, if there are any.
        """
        if self.directory is None or not (self.directory / SCALARS).exists():
            return None
        if step == 0:
            name = self.directory.name
            taken = sorted(self.directory.parent.glob(f"{name}_[0-9]*"))
            return self.directory.rename(
                self.directory.with_name(f"{name}_{len(taken) + 1}")
            )
        scalars = self.directory / SCALARS
        kept = [
            line
            for line in scalars.read_text().splitlines(keepends=True)
            # a line that a full disk or a dead machine has cut has no end
            if line.endswith("\n") and json.loads(line)["step"] <= step
        ]
        temporary = scalars.with_suffix(".tmp")
        temporary.write_text("".join(kept))
        temporary.replace(scalars)
        return None

    def begin_step(self, step: int, epoch: int, images: int | None = None) -> None:
        """Before a step.

        Args:
            step: counted from 1.
            epoch: counted from 1.
            images: in this rank's batch, from which ``views`` follows.
        """
        self._images = images
        self._stop_observing()
        self._measuring = step % self.interval == 0 and step != self._step
        self._step, self._scalars = step, None
        chosen = self._is_chosen(epoch)
        if self._histogram is None and chosen:
            self._histogram = EpochHistogram()
        if self._measuring or chosen:
            self._handle = self.loss.register_observer(self._observe)

    def end_step(self, progress: float | None = None) -> StepReport:
        """After the step; ``progress`` is the share of the schedule done, if known."""
        self._stop_observing()
        if self._scalars is None:
            return StepReport(None, None)
        if self.directory is not None:
            self.directory.mkdir(parents=True, exist_ok=True)
            line = json.dumps({"step": self._step, **self._scalars})
            with (self.directory / SCALARS).open("a") as file:
                file.write(line + "\n")
        sign = failure_sign(
            self._scalars,
            temperature=self.loss.temperature,
            epsilon=self.loss.epsilon,
            progress=progress,
            batch_references=isinstance(self.loss.centroids, BatchCentroids),
        )
        return StepReport(self._scalars, self.signs.news(sign))

    def end_epoch(self, epoch: int) -> None:
        """After epoch ``epoch``, from 1: store its histograms if it is a chosen one."""
        histogram, self._histogram = self._histogram, None
        if histogram is None or not histogram.seen:
            return
        content = histogram.content(self.loss.temperature, self.loss.epsilon)
        if self.directory is not None:
            self.directory.mkdir(parents=True, exist_ok=True)
            if self.classes:
                content["names"] = names_of(content["classes"], self.classes)
            path = self.directory / f"epoch_{epoch:04d}.npz"
            temporary = path.with_suffix(".tmp")
            with temporary.open("wb") as file:
                np.savez_compressed(file, epoch=epoch, step=self._step, **content)
            temporary.replace(path)

    def state_dict(self) -> dict[str, Any]:
        """What was told so far, in plain values, for a checkpoint."""
        return self.signs.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`; what was told is not told again."""
        self.signs.load_state_dict(state)

    def _is_chosen(self, epoch: int) -> bool:
        chosen = self.histogram_epochs
        return epoch % chosen == 0 if isinstance(chosen, int) else epoch in chosen

    def _stop_observing(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _observe(self, observation: Observation) -> None:
        if self._histogram is not None:
            self._histogram.add(observation)
        if self._measuring:
            if self.views is None:
                rows, images = len(observation.embeddings), self._images
                self.views = max(1, rows // images) if images else 2
            self._scalars = measure(observation, self.loss, self.views)


def names_of(labels: Sequence[int], classes: Sequence[str]) -> list[str]:
    """Names of ``labels``; "?" for those that have none."""
    return [classes[i] if 0 <= i < len(classes) else "?" for i in labels]


@torch.no_grad()
def measure(observation: Observation, loss: VarConLoss, views: int) -> dict[str, float]:
    """All measures of one batch, of all ranks that share it; every rank must call.

    Args:
        observation: from ``loss.register_observer``.
        loss: what was observed.
        views: embeddings an image contributes.

    Returns:
        Plain numbers by name, equal on every rank, and with any number of them but for
        ``uniformity``. Means are over the samples that have a loss.
    """
    embeddings, _, references, _, group = observation
    sums, counts = global_class_sums(
        precise(embeddings), references.targets, len(references.centroids), group
    )
    centroids, num_references = _distinct(references)
    similarity = centroid_similarity(centroids)
    means = _means_across_ranks(observation, loss)
    values = {
        "loss": means[0] + means[1],
        "kl": means[0],
        "nll": means[1],
        "confidence": means[2],
        "random_confidence": _random_confidence(
            counts, num_references, embeddings.shape[1], loss
        ),
        "tau2_mean": means[3],
        "tau2_std": (means[4] - means[3] ** 2).clamp(min=0).sqrt(),
        "tau2_low_share": means[5],
        "tau2_high_share": means[6],
        "centroid_cosine_mean": similarity.mean,
        "centroid_cosine_max": similarity.max,
        "centroid_effective_rank": similarity.effective_rank,
        "dispersion": dispersion(sums, counts),
        "alignment": alignment(sums, counts),
        "uniformity": uniformity(embeddings, group),
        "singleton_share": singleton_share(counts, views),
        "classes": classes_in_batch(counts),
    }
    numbers = torch.stack([x.to(sums) for x in values.values()]).tolist()
    health = dict(zip(values, numbers, strict=True))
    health["references"] = num_references
    health["chance_level"] = chance_level(
        num_references, loss.temperature, loss.epsilon
    )
    return health


def _distinct(references: References) -> tuple[Tensor, int]:
    """The references that count, each once, and how many classes they stand for."""
    centroids, present = references.centroids.detach(), references.present
    if present is None:
        return centroids, len(centroids)
    centroids = centroids[present > 0]
    if present.dtype != torch.bool:  # drawn, some of them repeatedly
        centroids = torch.unique(centroids, dim=0)
    return centroids, round(float(present.sum()))


def _random_confidence(
    counts: Tensor, num_references: int, dim: int, loss: VarConLoss
) -> Tensor:
    source = loss.centroids
    if not isinstance(source, BatchCentroids):  # unrelated to the batch: two each
        counts = counts.new_full((num_references,), 2)
    included = isinstance(source, BatchCentroids) and not source.leave_one_out
    return random_confidence(counts, dim, loss.temperature, self_included=included)


def _means_across_ranks(observation: Observation, loss: VarConLoss) -> Tensor:
    """Means of kl, nll, confidence, tau2, tau2^2 and the bound shares, (7,)."""
    terms, counted = observation.terms, observation.references.counted
    kept = [terms.kl, terms.nll, terms.confidence, terms.tau2]
    if counted is not None:
        kept = [x[counted] for x in kept]
    kl, nll, confidence, tau2 = map(precise, kept)
    num = tau2.new_tensor(len(tau2))
    shares = (num, num)
    if len(tau2):
        shares = bound_shares(tau2, loss.temperature, loss.epsilon)
    sums = [x.sum() for x in (kl, nll, confidence, tau2, tau2**2)]
    sums += [share * num for share in shares]
    totals = sum_across_ranks(torch.stack([*sums, num]), observation.group)
    return totals[:-1] / totals[-1].clamp(min=1)
