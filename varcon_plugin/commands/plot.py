"""Draw what VarConDiagnosticsHook and VarConDiagnosticsCallback recorded.

python tools/plot_diagnostics.py WORK_DIR  (--help lists the flags)

WORK_DIR is a run's folder, of mmengine or of Lightning, or one above several runs. The
pictures land beside the records; docs/diagnostics.md says how to read them. Needs
matplotlib (the "eval" extra).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from varcon_plugin.commands.messages import fail

Content = TypeVar("Content")
MAX_RIDGES = 16
MAX_TICKS = 20


class Run(NamedTuple):
    """What one run recorded.

    Attributes:
        folder: where it lies.
        scalars: (steps,) of each measure, and "step".
        epochs: the stored epochs in order, as arrays by name.
    """

    folder: Path
    scalars: dict[str, np.ndarray]
    epochs: list[dict[str, Any]]


def main() -> None:
    """Draw every run found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work_dir", type=Path, help="folder of a run, or above several")
    parser.add_argument("--dpi", type=int, default=110, help="of the pictures")
    args = parser.parse_args()
    found = sorted(args.work_dir.rglob("scalars.jsonl"))
    if not found:
        fail(
            f"no diagnostics/scalars.jsonl below {args.work_dir}; "
            "train with VarConDiagnosticsHook or VarConDiagnosticsCallback"
        )
    try:
        for path in found:
            draw(load(path.parent), args.dpi)
    except ValueError as error:
        fail(error)


def load(folder: Path) -> Run:
    """Read a run; where a resumed run measured a step again, the later line counts.

    Raises:
        ValueError: a file is damaged; in one line that names it.
    """
    epochs = [read(path, read_epoch) for path in sorted(folder.glob("epoch_*.npz"))]
    return Run(folder, read(folder / "scalars.jsonl", read_scalars), epochs)


def read(path: Path, reader: Callable[[Path], Content]) -> Content:
    """What ``reader`` makes of a file.

    Raises:
        ValueError: it is damaged, or not of the monitor.
    """
    try:
        return reader(path)
    except Exception as error:  # a class of its own for each fault
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{path} is damaged ({said})") from error


def read_scalars(path: Path) -> dict[str, np.ndarray]:
    """Measures by name, in the order of the steps."""
    records = {r["step"]: r for r in map(json.loads, path.read_text().splitlines())}
    ordered = [records[step] for step in sorted(records)]
    return {name: np.array([r[name] for r in ordered]) for name in ordered[0]}


def read_epoch(path: Path) -> dict[str, Any]:
    """The arrays of a stored epoch; each has a checksum, which is compared."""
    with path.open("rb") as file, np.load(file) as content:
        return dict(content)


def draw(run: Run, dpi: int) -> None:
    """Write the pictures of a run and print its stored epochs."""
    for name, figure in figures(run).items():
        if figure is None:
            print(f"{name}.png needs stored epochs, of which there is none")
            continue
        path = run.folder / f"{name}.png"
        figure.savefig(path, dpi=dpi, metadata={"Software": None})
        plt.close(figure)
        print(path)
    if run.epochs:
        print("epoch  tau2 mean  tau2 std  confidence")
    for epoch in run.epochs:
        print(
            f"{epoch['epoch']:5d}  {epoch['tau2_mean']:9.4f}  {epoch['tau2_std']:8.4f}"
            f"  {epoch['confidence_mean']:10.3f}"
        )


def figures(run: Run) -> dict[str, Figure | None]:
    """The pictures by name; None for what no stored epoch shows."""
    alone = len(run.scalars["step"]) == 1  # a line through one point is not seen
    with mpl.rc_context({"lines.marker": "o" if alone else "None"}):
        return {
            "tau2": tau2_figure(run),
            "confidence": confidence_figure(run),
            "loss": loss_figure(run),
            "geometry": geometry_figure(run),
            "centroids": centroids_figure(run),
        }


def steps_below(axes: Axes) -> None:
    """Label the axis of whole steps."""
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def tau2_figure(run: Run) -> Figure:
    """Its distribution over the stored epochs, and mean and deviation over steps."""
    figure, grid = plt.subplot_mosaic(
        [["ridges", "mean"], ["ridges", "deviation"]],
        figsize=(11, 6),
        layout="constrained",
    )
    ridges(grid["ridges"], run.epochs)
    steps, mean = run.scalars["step"], run.scalars["tau2_mean"]
    deviation = run.scalars["tau2_std"]
    low, high = mean - deviation, mean + deviation
    if run.epochs:
        bounds = run.epochs[0]["tau2_edges"][[0, -1]]
        low, high = np.clip(low, *bounds), np.clip(high, *bounds)
        for bound in bounds:
            grid["mean"].axhline(bound, color="grey", ls="--", lw=1, marker="")
    grid["mean"].fill_between(steps, low, high, alpha=0.25)
    grid["mean"].plot(steps, mean)
    grid["mean"].set(title="mean ± standard deviation (dashed: bounds)", ylabel="tau2")
    grid["deviation"].plot(steps, deviation, color="C1")
    grid["deviation"].set(title="standard deviation", ylim=(0, None))
    grid["deviation"].set(ylabel="tau2")
    for name in ("mean", "deviation"):
        steps_below(grid[name])
    return figure


def ridges(axes: Axes, epochs: list[dict[str, Any]]) -> None:
    """One curve a stored epoch, early ones at the bottom."""
    axes.set(xlabel="tau2 (height: root of the share of samples; |: mean)")
    axes.set(ylabel="epoch", title="distribution over all samples of an epoch")
    if not epochs or epochs[0]["epsilon"] == 0:
        reason = "epsilon is 0: tau2 is fixed" if epochs else "no epoch is stored"
        axes.text(0.5, 0.5, reason, ha="center", transform=axes.transAxes)
        return
    chosen = np.linspace(0, len(epochs) - 1, min(len(epochs), MAX_RIDGES)).round()
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(chosen)))
    for row, index in enumerate(chosen.astype(int)):
        epoch = epochs[index]
        edges, counts = epoch["tau2_edges"], epoch["counts"]
        # The root keeps a full bin at the bound from flattening all others.
        height = 1.8 * np.sqrt(counts / max(counts.sum(), 1))
        axes.stairs(row + height, edges, baseline=row, fill=True, alpha=0.75,
                    color=colors[row], zorder=-row)  # fmt: skip
        axes.stairs(row + height, edges, baseline=None, color="white", linewidth=0.6,
                    zorder=-row)  # fmt: skip
        axes.plot(epoch["tau2_mean"], row, "k|", markersize=9, zorder=1)
    axes.set_yticks(
        range(len(chosen)), [str(epochs[i]["epoch"]) for i in chosen.astype(int)]
    )


def confidence_figure(run: Run) -> Figure:
    """Its mean beside that of random embeddings, and the shares at the bounds."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    s = run.scalars
    left.plot(s["step"], s["confidence"], label="this run")
    left.plot(s["step"], s["random_confidence"], linestyle="--", color="grey",
              label="random embeddings, same batch")  # fmt: skip
    left.set(ylabel="mean confidence", ylim=(0, 1.02))
    left.set_title("posterior of the true class")
    right.plot(s["step"], s["tau2_high_share"], label="upper bound: confidence > .95")
    right.plot(s["step"], s["tau2_low_share"], label="lower bound: confidence < .05")
    right.plot(s["step"], s["singleton_share"], linestyle=":", color="C3",
               label="images without a classmate")  # fmt: skip
    right.set(ylabel="share of the samples", ylim=(-0.02, 1.02))
    right.set_title("samples whose tau2 is at a bound")
    for axes in (left, right):
        steps_below(axes)
        axes.legend()
    return figure


def loss_figure(run: Run) -> Figure:
    """The loss and its terms against chance."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    s = run.scalars
    axes.plot(s["step"], s["loss"], label="loss")
    # The two terms all but coincide: the narrow one is drawn over the wide one.
    axes.plot(s["step"], s["nll"], color="C2", linewidth=4, markersize=12, alpha=0.4,
              label="-log p(r|z)")  # fmt: skip
    axes.plot(s["step"], s["kl"], color="C1", linewidth=1.2, label="KL(q || p)")
    axes.plot(
        s["step"], s["chance_level"], linestyle="--", color="grey", label="chance"
    )
    axes.set(ylabel="nats", ylim=(0, None), title="loss and its terms")
    steps_below(axes)
    axes.legend()
    return figure


def geometry_figure(run: Run) -> Figure:
    """Where classes and samples lie."""
    figure, grid = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
    s = run.scalars
    cosine, rank, spread, uniform = grid.flat
    cosine.plot(s["step"], s["centroid_cosine_max"], label="maximum")
    cosine.plot(s["step"], s["centroid_cosine_mean"], label="mean")
    cosine.axhline(1, color="grey", linestyle="--", linewidth=1, marker="")
    lowest = min(0, s["centroid_cosine_mean"].min())
    cosine.set(title="cosine between classes (1: collapsed)", ylim=(lowest, 1.05))
    rank.plot(s["step"], s["centroid_effective_rank"], label="effective rank")
    rank.plot(s["step"], s["references"], linestyle="--", color="grey", label="classes")
    highest = 1.05 * s["references"].max()
    rank.set(title="dimensions the classes span", ylim=(0, highest))
    spread.plot(s["step"], s["alignment"], label="alignment")
    spread.plot(s["step"], s["dispersion"], label="dispersion")
    largest = max(1, np.nanmax(s["alignment"], initial=0))
    spread.set(title="distance within classes", ylim=(0, 1.05 * largest))
    uniform.plot(s["step"], s["uniformity"], label="uniformity")
    floor = np.log(1 / s["references"] + np.exp(-4))
    uniform.plot(
        s["step"], floor, linestyle="--", color="grey", label="compact classes"
    )
    uniform.set(title="spread of all samples (0: one point)", ylim=(-4.1, 0.1))
    for axes in grid.flat:
        steps_below(axes)
        axes.legend()
    return figure


def centroids_figure(run: Run) -> Figure | None:
    """Heat maps of the cosines between classes, first and last stored epoch."""
    if not run.epochs:
        return None
    shown = run.epochs[:: max(1, len(run.epochs) - 1)]
    figure, grid = plt.subplots(
        1, len(shown), figsize=(5.5 * len(shown), 4.8), layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for axes, epoch in zip(grid.flat, shown, strict=True):
        rows = epoch["centroids"].astype(np.float32)
        image = axes.imshow(rows @ rows.T, vmin=-1, vmax=1, cmap="RdBu_r")
        axes.set(title=f"epoch {epoch['epoch']}", xlabel="class", ylabel="class")
        names = epoch.get("names", epoch["classes"])
        if len(rows) <= MAX_TICKS:
            turned = 90 if "names" in epoch else 0
            axes.set_xticks(range(len(rows)), names, rotation=turned)
            axes.set_yticks(range(len(rows)), names)
    figure.colorbar(image, ax=grid, label="cosine between class references")
    return figure
