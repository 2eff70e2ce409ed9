"""What a run without labels found: t-SNE, and a page of images by latent class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from varcon_plugin.evaluation.plots import draw_tsne
from varcon_plugin.experiments.self_supervised_run import Run
from varcon_plugin.momentum import MomentumCentroids
from varcon_plugin.self_supervised import SelfSupervisedVarConLoss

__all__ = ["draw_pictures", "latent_page"]

ROWS, COLUMNS = 16, 14
GAP = 2  # pixels
DPI = 70  # images of 32 pixels need no more


def draw_pictures(run: Run, classes: Sequence[str], out: Path) -> None:
    """Write ``tsne.png`` and, where there are latent classes, ``classes.png``.

    Args:
        run: trained.
        classes: names of the labels, which say what a latent class mostly holds.
        out: folder.
    """
    _, features = run.features()
    draw_tsne(features, run.pixels.truth, classes, out / "tsne.png")
    criterion = run.criterion
    if not isinstance(criterion, SelfSupervisedVarConLoss):
        return
    latent = criterion.latent_loss
    if latent is None or not isinstance(latent.centroids, MomentumCentroids):
        return
    run.model.eval()
    with torch.no_grad():
        embeddings = F.normalize(run.model.head(features), dim=1)
    cosines = embeddings @ F.normalize(latent.centroids.means, dim=1).T
    latent_page(cosines, run.pixels.test, run.pixels.truth, classes, out)


def latent_page(
    cosines: Tensor,
    images: Tensor,
    truth: Tensor,
    classes: Sequence[str],
    out: Path,
) -> None:
    """Write ``classes.png``: a row for each of some latent classes, nearest first.

    Args:
        cosines: (N, C) of images with the references of the latent classes.
        images: (N, 3, H, W), uint8.
        truth: (N,) labels, for the share of the most frequent one in each class.
        classes: names of the labels.
        out: folder.
    """
    own = cosines.argmax(dim=1)
    sizes = own.bincount(minlength=cosines.shape[1])
    ordered = sizes.argsort(descending=True, stable=True)[: int((sizes > 0).sum())]
    steps = torch.linspace(0, len(ordered) - 1, min(ROWS, len(ordered)))
    chosen = ordered[steps.round().long()].tolist()  # from the largest to the smallest
    height = images.shape[2] + GAP
    page = torch.full((len(chosen) * height, COLUMNS * height, 3), 255).byte()
    told = []
    for row, latent in enumerate(chosen):
        members = (own == latent).nonzero().flatten()
        nearest = members[cosines[members, latent].argsort(descending=True)]
        for column, index in enumerate(nearest[:COLUMNS].tolist()):
            top, left = row * height, column * height
            pixels = images[index].permute(1, 2, 0)
            page[top : top + height - GAP, left : left + height - GAP] = pixels
        counts = truth[members].bincount(minlength=len(classes))
        share, name = float(counts.max()) / len(members), classes[int(counts.argmax())]
        told.append(f"{len(members)} images, {share:.0%} {name}")
    figure = Figure(figsize=(9, 0.55 * len(chosen) + 0.5), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(page.numpy())
    axes.set_yticks([row * height + height / 2 for row in range(len(chosen))], told)
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    axes.set_title("test images by latent class, nearest to its reference first")
    figure.savefig(out / "classes.png", dpi=DPI)
