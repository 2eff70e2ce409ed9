"""Results of a grid as a table (Markdown, CSV, JSON) and a picture."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import t as student_t

from varcon_plugin.evaluation.plots import within_percent
from varcon_plugin.evaluation.report import markdown_table
from varcon_plugin.experiments.grid import Experiment

__all__ = [
    "Estimate",
    "difference",
    "epochs_to_reach",
    "estimate",
    "summarise",
    "write_summary",
]

Result = Mapping[str, Any]
PROTOCOLS = {"knn": "k-NN", "linear": "linear", "class_mean": "class-mean"}
GROUPED = {
    f"{protocol}_{group}": f"{shown}, {group}"
    for protocol, shown in PROTOCOLS.items()
    for group in ("frequent", "rare")
}
LEVEL = 0.95  # of the best mean accuracy, where no level is given
# of Okabe and Ito
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DPI = 120


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: of the values there are; None if there are none.
        interval: half the width of the 95 % confidence interval (Student's t); None
            for fewer than two values.
    """

    mean: float | None
    interval: float | None

    def __str__(self) -> str:
        if self.mean is None:
            return "never"
        if self.interval is None:
            return f"{self.mean:.2f}"
        return f"{self.mean:.2f} ± {self.interval:.2f}"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % interval of ``values``."""
    if not values:
        return Estimate(None, None)
    if len(values) == 1:
        return Estimate(values[0], None)
    quantile = float(student_t.ppf(0.975, len(values) - 1))
    half = quantile * statistics.stdev(values) / len(values) ** 0.5
    return Estimate(statistics.fmean(values), half)


def difference(
    group: Sequence[Result], reference: Sequence[Result], key: str
) -> Estimate:
    """Mean and 95 % interval of ``key`` less that of ``reference``, seed by seed.

    Over the seeds that both have: the same images in the same order.
    """
    theirs = {result["seed"]: result[key] for result in reference}
    return estimate([r[key] - theirs[r["seed"]] for r in group if r["seed"] in theirs])


def epochs_to_reach(curve: Sequence[Sequence[float]], level: float) -> float | None:
    """The epoch at which ``curve`` of (epoch, accuracy) first reaches ``level``.

    Between two measurements it is a straight line; before the first one it is not
    known, and the first one counts. None: it never does.
    """
    before: Sequence[float] | None = None
    for epoch, accuracy in curve:
        if accuracy >= level:
            if before is None or accuracy == before[1]:
                return epoch
            share = (level - before[1]) / (accuracy - before[1])
            return before[0] + share * (epoch - before[0])
        before = (epoch, accuracy)
    return None


def summarise(results: Sequence[Result], level: float | None) -> dict[str, Any]:
    """Rows of (method, setting) with estimates over the seeds.

    Args:
        results: of the cells.
        level: k-NN top-1 to reach, in percent; None takes 95 % of the best mean. A run
            that never reaches it makes its row's number of epochs "never".
    """
    groups: dict[tuple[str, float | None], list[Result]] = {}
    for result in results:
        groups.setdefault((result["method"], result["setting"]), []).append(result)
    if level is None:
        level = LEVEL * max(statistics.fmean(map(knn, g)) for g in groups.values())
    rows = []
    for (method, setting), group in groups.items():
        reached = [epochs_to_reach(result["curve"], level) for result in group]
        epochs = [epoch for epoch in reached if epoch is not None]
        rows.append(
            {
                "method": method,
                "setting": setting,
                "seeds": [result["seed"] for result in group],
                "knn": estimate([*map(knn, group)]),
                **{
                    key: estimate([result[key] for result in group])
                    for key in (*list(PROTOCOLS)[1:], *GROUPED, "learning_rate")
                    if key in group[0]
                },
                "epochs": estimate(epochs if len(epochs) == len(group) else []),
                "seconds": estimate([result["seconds"] for result in group]),
                "curve": mean_curve(group),
            }
        )
    return {"level": level, "rows": rows}


def knn(result: Result) -> float:
    """k-NN top-1 at the end of a run."""
    value: float = result["knn"]
    return value


def mean_curve(group: Sequence[Result]) -> list[tuple[float, Estimate]]:
    """(epoch, accuracy) over the runs of ``group``, which measure at equal epochs."""
    points: dict[float, list[float]] = {}
    for result in group:
        for epoch, accuracy in result["curve"]:
            points.setdefault(epoch, []).append(accuracy)
    return [(epoch, estimate(values)) for epoch, values in sorted(points.items())]


def write_summary(
    name: str, experiment: Experiment, summary: Mapping[str, Any], about: str, out: Path
) -> str:
    """Write ``table.md``, ``table.csv``, ``results.json`` and ``plot.png``.

    Args:
        name: of the experiment.
        experiment: its declaration.
        summary: as `summarise` returns it.
        about: where the numbers come from: data, recipe, machine.
        out: folder.

    Returns:
        The table in Markdown.
    """
    columns = measured(summary)
    rates = [row["learning_rate"] for row in summary["rows"] if "learning_rate" in row]
    if any(rate.mean != 1 for rate in rates):
        columns["learning_rate"] = "learning rate, factor"
    columns["seconds"] = "seconds"
    header = ["method", experiment.axis, *columns.values(), "seeds"]
    rows = [
        [
            row["method"],
            "" if row["setting"] is None else f"{row['setting']:g}",
            *(str(row[key]) for key in columns),
            str(len(row["seeds"])),
        ]
        for row in summary["rows"]
    ]
    table = markdown_table(header, rows)
    (out / "table.md").write_text(
        f"# {name}\n\n{experiment.question}\n\n{about} Mean and 95 % interval over the "
        f"seeds, accuracies in percent.\n\n{table}\n\n![{name}](plot.png)\n"
    )
    with (out / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    content = {"experiment": name, "about": about, **summary}
    (out / "results.json").write_text(json.dumps(content, indent=1, default=asdict))
    draw(name, experiment, summary, out / "plot.png")
    return table


def measured(summary: Mapping[str, Any]) -> dict[str, str]:
    """What of the rows to show, and how it is called.

    Epochs to a level only where accuracy was measured in the course of a run.
    """
    rows = summary["rows"]
    shown = {key: f"{n} top-1" for key, n in PROTOCOLS.items() if key in rows[0]}
    shown |= {key: title for key, title in GROUPED.items() if key in rows[0]}
    if any(len(row["curve"]) > 1 for row in rows):
        shown["epochs"] = f"epochs to {summary['level']:.1f} % k-NN"
    return shown


def draw(
    name: str, experiment: Experiment, summary: Mapping[str, Any], path: Path
) -> None:
    """Accuracy by setting and epochs to the level, or accuracy by epoch."""
    methods = list(dict.fromkeys(row["method"] for row in summary["rows"]))
    if experiment.axis == "recipe":
        figure = Figure(figsize=(7, 5), layout="constrained")
        axis = figure.subplots()
        for colour, row in zip(COLOURS, summary["rows"], strict=False):
            points(axis, row["method"], colour, row["curve"])
        axis.set(xlabel="epoch", ylabel="k-NN top-1 (%)")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.legend()
        within_percent(axis)
    else:
        panels = measured(summary)
        columns = min(3, len(panels))
        lines = -(-len(panels) // columns)
        figure = Figure(figsize=(4 * columns, 4 * lines + 0.5), layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False).flatten().tolist()
        for spare in axes[len(panels) :]:
            spare.remove()
        for axis, (key, title) in zip(axes, panels.items(), strict=False):
            for colour, method in zip(COLOURS, methods, strict=False):
                rows = [row for row in summary["rows"] if row["method"] == method]
                curve = [(row["setting"], row[key]) for row in rows]
                points(axis, method, colour, curve)
            unit = "" if key == "epochs" else " (%)"
            axis.set(xlabel=experiment.axis, ylabel=title + unit)
            if experiment.axis == "batch size":
                axis.set_xscale("log", base=2)
                axis.minorticks_off()
            settings = sorted({row["setting"] for row in summary["rows"]})
            axis.set_xticks(settings, [f"{setting:g}" for setting in settings])
            if key == "epochs":
                axis.set_ylim(bottom=max(0, axis.get_ylim()[0]))
            else:
                within_percent(axis)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        ncols = min(3, len(labels))
        figure.legend(handles, labels, loc="outside lower center", ncols=ncols)
    figure.suptitle(f"{name}: mean and 95 % interval over the seeds")
    figure.savefig(path, dpi=DPI)


def points(
    axis: Any, label: str, colour: str, curve: Sequence[tuple[float, Estimate]]
) -> None:
    """A line with error bars, where there are means."""
    known = [(x, y.mean, y.interval or 0) for x, y in curve if y.mean is not None]
    xs, ys, half = zip(*known, strict=True) if known else ((), (), ())
    axis.errorbar(xs, ys, half, label=label, color=colour, marker="o", capsize=3)
    axis.spines[["top", "right"]].set_visible(False)
