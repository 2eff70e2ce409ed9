"""The runs of a study without labels as a table, paired differences and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from varcon_plugin.evaluation.report import markdown_table
from varcon_plugin.experiments.summary import (
    COLOURS,
    difference,
    estimate,
    mean_curve,
    points,
)

__all__ = ["paired", "write_summary"]

Result = Mapping[str, Any]
REFERENCE = "SimCLR"
DPI = 120


def write_summary(results: Sequence[Result], out: Path) -> str:
    """Write ``table.md`` and ``curves.png`` into ``out``; returns the table."""
    sizes = sorted({batch_size(result) for result in results}, reverse=True)
    header = ["batch", "method", "lr", "k-NN", "linear", "k-NN at first point"]
    header += [f"k-NN less {REFERENCE}", f"linear less {REFERENCE}"]
    header += [f"first point less {REFERENCE}", "classes used", "NMI", "seeds"]
    rows = [
        row(group, [r for r in results if batch_size(r) == size])
        for size in sizes
        for group in grouped([r for r in results if batch_size(r) == size])
    ]
    table = markdown_table(header, rows)
    (out / "table.md").write_text(table + "\n")
    draw(results, sizes, out / "curves.png")
    return table


def batch_size(result: Result) -> int:
    """Images a step."""
    return int(result["setting"]["batch_size"])


def grouped(results: Sequence[Result]) -> list[list[Result]]:
    """The runs of each method, the best linear accuracy first."""
    groups: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda r: r["seed"]):
        groups.setdefault(result["method"], []).append(result)
    return sorted(groups.values(), key=lambda g: -sum(r["linear"] for r in g) / len(g))


def row(group: Sequence[Result], results: Sequence[Result]) -> list[str]:
    """One method at one batch size, as the table shows it."""
    reference = [r for r in results if r["method"] == REFERENCE]
    latent = [r["latent"] for r in group if r["latent"]]
    return [
        str(batch_size(group[0])),
        group[0]["method"],
        f"{group[0]['learning_rate']:.3g}",
        str(estimate([r["knn"] for r in group])),
        str(estimate([r["linear"] for r in group])),
        str(estimate([r["curve"][0][1] for r in group])),
        paired(group, reference, "knn"),
        paired(group, reference, "linear"),
        paired(first_points(group), first_points(reference), "knn"),
        share(latent),
        str(estimate([x["nmi"] for x in latent])) if latent else "",
        str(len(group)),
    ]


def share(latent: Sequence[Mapping[str, float]]) -> str:
    """Of the classes that are used, on average."""
    if not latent:
        return ""
    used = [x["latent_used"] / x["latent_classes"] for x in latent]
    return f"{100 * sum(used) / len(used):.0f} %"


def first_points(results: Sequence[Result]) -> list[Result]:
    """The results as they were at the first point of their curves."""
    return [{**result, "knn": result["curve"][0][1]} for result in results]


def paired(group: Sequence[Result], reference: Sequence[Result], key: str) -> str:
    """Mean difference over the seeds that both have, with its 95 % interval."""
    found = difference(group, reference, key)
    if found.mean is None or group[0]["method"] == REFERENCE:
        return ""
    interval = "" if found.interval is None else f" ± {found.interval:.2f}"
    return f"{found.mean:+.2f}{interval}"


def draw(results: Sequence[Result], sizes: Sequence[int], path: Path) -> None:
    """k-NN accuracy by epoch, a panel for each batch size."""
    figure = Figure(figsize=(6 * len(sizes), 5), layout="constrained")
    axes = figure.subplots(1, len(sizes), squeeze=False)[0]
    methods = sorted({result["method"] for result in results})
    for axis, size in zip(axes, sizes, strict=True):
        for group in grouped([r for r in results if batch_size(r) == size]):
            name = group[0]["method"]
            colour = COLOURS[methods.index(name) % len(COLOURS)]
            points(axis, name, colour, mean_curve(group))
        axis.set(xlabel="epoch", ylabel="k-NN top-1 (%)", title=f"batch {size}")
        axis.legend()
    figure.savefig(path, dpi=DPI)
