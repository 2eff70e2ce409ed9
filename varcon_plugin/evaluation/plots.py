"""Pictures of a report, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import dendrogram
from sklearn.manifold import TSNE
from sklearn.metrics import confusion_matrix
from torch import Tensor

from varcon_plugin.evaluation.clustering import class_linkage
from varcon_plugin.evaluation.store import Features

__all__ = [
    "draw_all",
    "draw_confusion",
    "draw_corruption",
    "draw_dendrogram",
    "draw_few_shot",
    "draw_tsne",
    "within_percent",
]

MOST_NAMED = 20  # classes whose names a picture can hold
MOST_LEAVES = 100
DPI = 120


def draw_all(
    protocols: Mapping[str, Any],
    test: Features,
    predicted: Tensor | None,
    folder: Path,
    *,
    seed: int = 0,
) -> list[str]:
    """Draw what belongs to the ``protocols`` of a report; the names of the files.

    Args:
        protocols: results by protocol, as in the report.
        test: features of the test split.
        predicted: classes by the linear probe, (N,); None draws no confusion matrix.
        folder: created if missing.
        seed: of the t-SNE.
    """
    folder.mkdir(parents=True, exist_ok=True)
    features, labels, classes = test
    drawn = ["tsne.png"]
    draw_tsne(features, labels, classes, folder / "tsne.png", seed=seed)
    if "linear" in protocols and predicted is not None:
        drawn.append("confusion.png")
        draw_confusion(predicted, labels, classes, folder / "confusion.png")
    if "few-shot" in protocols:
        drawn.append("few_shot.png")
        draw_few_shot(protocols["few-shot"]["results"], folder / "few_shot.png")
    if "clustering" in protocols:
        drawn.append("dendrogram.png")
        draw_dendrogram(features, labels, classes, folder / "dendrogram.png")
    if "corruption" in protocols:
        drawn.append("corruption.png")
        draw_corruption(protocols["corruption"], folder / "corruption.png")
    return drawn


def draw_tsne(
    features: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    path: Path,
    *,
    most: int = 2000,
    seed: int = 0,
) -> None:
    """t-SNE of L2-normalised features, a random ``most`` of them.

    Up to 20 classes are named at the median of their points; more are only coloured.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(features), generator=generator)[:most]
    ids = labels[chosen].numpy()
    perplexity = min(30.0, (len(chosen) - 1) / 3)
    points = TSNE(perplexity=perplexity, random_state=seed).fit_transform(
        F.normalize(features[chosen], dim=1).numpy()
    )
    figure = Figure(figsize=(8, 8), layout="constrained")
    axes = figure.add_subplot()
    named = len(classes) <= MOST_NAMED
    axes.scatter(
        points[:, 0],
        points[:, 1],
        c=ids,
        s=12,
        alpha=0.7,
        linewidths=0,
        cmap="tab10" if len(classes) <= 10 else "tab20" if named else "gist_rainbow",
        vmin=-0.5,
        vmax=max(len(classes), 10 if len(classes) <= 10 else 20) - 0.5,
    )
    for label in np.unique(ids) if named else ():
        x, y = np.median(points[ids == label], axis=0)
        axes.text(
            x,
            y,
            classes[label],
            ha="center",
            va="center",
            weight="bold",
            bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1.5},
        )
    axes.set(xticks=[], yticks=[])
    axes.set_title(f"t-SNE of {len(chosen):,} test features (cosine)")
    figure.savefig(path, dpi=DPI)


def draw_confusion(
    predicted: Tensor, labels: Tensor, classes: Sequence[str], path: Path
) -> None:
    """Confusion matrix in percent of each true class; names and numbers up to 20."""
    shares = 100 * confusion_matrix(
        labels.numpy(),
        predicted.numpy(),
        labels=range(len(classes)),
        normalize="true",
    )
    named = len(classes) <= MOST_NAMED
    side = max(6.0, 0.5 * len(classes)) if named else 9.0
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    figure.colorbar(image, label="% of the true class", shrink=0.8)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_title("Confusion of the linear probe")
    if named:
        axes.set_xticks(range(len(classes)), classes, rotation=90)
        axes.set_yticks(range(len(classes)), classes)
        for row, column in np.argwhere(shares > 0.5):
            share = shares[row, column]
            colour = "white" if share > 60 else "black"
            axes.text(
                column,
                row,
                f"{share:.0f}",
                color=colour,
                size=8,
                ha="center",
                va="center",
            )
    figure.savefig(path, dpi=DPI)


def draw_few_shot(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Accuracy against shots with 95 % intervals, a curve for each classifier."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    for number, classifier in enumerate(
        dict.fromkeys(row["classifier"] for row in results)
    ):
        rows = [row for row in results if row["classifier"] == classifier]
        aside = 1.04**number  # so that intervals do not hide each other
        axes.errorbar(
            [aside * row["shots"] for row in rows],
            [row["mean"] for row in rows],
            [row["interval"] for row in rows],
            marker="o",
            capsize=4,
            label=classifier,
        )
    shots = sorted({row["shots"] for row in results})
    axes.set_xscale("log")
    axes.set_xticks(shots, [str(n) for n in shots])
    axes.minorticks_off()
    axes.set(xlabel="labelled images for each class", ylabel="top-1 (%)")
    within_percent(axes)
    axes.set_title(f"Few-shot, {len(results[0]['draws'])} draws, 95 % interval")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=DPI)


def within_percent(axes: Axes) -> None:
    """Cut intervals that reach below 0 % or beyond 100 %."""
    low, high = axes.get_ylim()
    margin = 0.02 * (min(high, 100) - max(low, 0))
    axes.set_ylim(max(low, -margin), min(high, 100 + margin))


def draw_corruption(result: Mapping[str, Any], path: Path) -> None:
    """Heat map of accuracy by corruption and severity, the clean accuracy on top."""
    rows = result["results"]
    severities = list(dict.fromkeys(row["severity"] for row in rows))
    names = list(dict.fromkeys((row["family"], row["corruption"]) for row in rows))
    grid = np.array([row["top1"] for row in rows]).reshape(len(names), len(severities))
    figure = Figure(
        figsize=(3.6 + 0.8 * len(severities), 1.5 + 0.36 * len(names)),
        layout="constrained",
    )
    axes = figure.add_subplot()
    image = axes.imshow(
        grid, cmap="viridis", vmin=0, vmax=100, aspect="auto", interpolation="nearest"
    )
    figure.colorbar(image, label="top-1 (%)")
    for row, column in np.ndindex(grid.shape):
        value = grid[row, column]
        colour = "white" if value < 60 else "black"
        axes.text(
            column, row, f"{value:.0f}", color=colour, size=9, ha="center", va="center"
        )
    axes.set_xticks(range(len(severities)), [str(s) for s in severities])
    labels = [f"{family}: {name.replace('_', ' ')}" for family, name in names]
    axes.set_yticks(range(len(names)), labels)
    for row in range(1, len(names)):
        if names[row][0] != names[row - 1][0]:
            axes.axhline(row - 0.5, color="white", linewidth=2)
    axes.set_xlabel("severity")
    title = (
        "ImageNet-C" if result["source"] == "imagenet-c" else "Generated corruptions"
    )
    axes.set_title(f"{title} (clean: {result['clean_top1']:.1f} %)")
    figure.savefig(path, dpi=DPI)


def draw_dendrogram(
    features: Tensor, labels: Tensor, classes: Sequence[str], path: Path
) -> None:
    """Ward dendrogram of the class means; beyond 100 classes the last 100 merges."""
    tree, present = class_linkage(features, labels)
    leaves = min(len(present), MOST_LEAVES)
    figure = Figure(figsize=(8, max(4.0, 0.2 * leaves + 1)), layout="constrained")
    axes = figure.add_subplot()
    dendrogram(
        tree,
        ax=axes,
        orientation="left",
        labels=[classes[label] for label in present],
        truncate_mode="lastp" if len(present) > MOST_LEAVES else None,
        p=MOST_LEAVES,
        leaf_font_size=9 if leaves <= 40 else 7,
    )
    axes.set_xlabel("distance (Ward)")
    more = ", (n): n classes" if len(present) > MOST_LEAVES else ""
    axes.set_title(f"Class means of the test features{more}")
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=DPI)
