"""Reports: JSON for programs, Markdown and CSV for people, and several side by side."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["comparison", "flatten", "markdown_table", "render", "write_report"]

SCHEMA_VERSION = 1


def write_report(report: Mapping[str, Any], folder: Path) -> None:
    """Write ``report.json``, ``report.md`` and ``report.csv``.

    Args:
        report: as ``report.schema.json`` beside this module describes it.
        folder: created if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=2, allow_nan=False)
    (folder / "report.json").write_text(text + "\n")
    (folder / "report.md").write_text(render(report))
    with (folder / "report.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("metric", "value"), *flatten(report).items()])


def flatten(report: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a report under names that are the same in every report."""
    found: dict[str, float] = {}
    protocols = report["protocols"]
    for row in protocols.get("knn", {}).get("results", []):
        name = f"k-NN (k={row['k']}, T={row['temperature']:g})"
        found[f"{name} top-1"], found[f"{name} top-5"] = row["top1"], row["top5"]
    if linear := protocols.get("linear"):
        found["linear top-1"], found["linear top-5"] = linear["top1"], linear["top5"]
        found["linear mean per class"] = linear["mean_per_class"]
    for row in protocols.get("class-mean", {}).get("results", []):
        found[f"class mean of {row['space']} top-1"] = row["top1"]
    for row in protocols.get("few-shot", {}).get("results", []):
        found[f"{row['shots']}-shot {row['classifier']} top-1"] = row["mean"]
    if clustering := protocols.get("clustering"):
        for name in ("accuracy", "nmi", "ari", "purity"):
            found[f"clustering {name}"] = clustering[name]
    if corruption := protocols.get("corruption"):
        found["corrupted top-1"] = corruption["mean_top1"]
        if corruption["mce"] is not None:
            found["mCE"] = corruption["mce"]
    for row in protocols.get("transfer", {}).get("results", []):
        found[f"transfer {row['dataset']} {row['metric']}"] = row["value"]
    return found


def comparison(
    reports: Mapping[str, Mapping[str, Any]],
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table: one row a number, one column a report."""
    columns = {name: flatten(report) for name, report in reports.items()}
    metrics = dict.fromkeys(name for column in columns.values() for name in column)
    rows = [
        [metric, *(number(column.get(metric)) for column in columns.values())]
        for metric in metrics
    ]
    return ["metric", *columns], rows


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def render(report: Mapping[str, Any]) -> str:
    """The report in Markdown."""
    model, data = report["model"], report["data"]
    parts = [
        f"# {model['model']} on {data['name']}",
        f"Frozen encoder from `{model['checkpoint']}` ({model['source']}, "
        f"{model['parameters']:,} parameters, {model['dimension']} features); "
        f"{data['train']:,} training and {data['test']:,} test images of "
        f"{data['classes']} classes; seed {report['settings']['seed']}. Everything in "
        "percent.",
    ]
    if "normalisation" in model:
        parts.append(f"Pixels: {model['normalisation']}.")
    parts += report.get("notes", ())
    for name, result in report["protocols"].items():
        parts += [f"## {name}", SECTIONS[name](result)]
        pictures = PICTURES.get(name, ())
        parts += [f"![{p}]({p})" for p in pictures if p in report["pictures"]]
    others = set(report["pictures"]) - {p for group in PICTURES.values() for p in group}
    parts += [f"![{picture}]({picture})" for picture in sorted(others)]
    return "\n\n".join(parts) + "\n"


def summary(report: Mapping[str, Any]) -> str:
    """The numbers of a report as one Markdown table, and what they are of."""
    rows = [[name, number(value)] for name, value in flatten(report).items()]
    about = report["data"]
    return (
        f"Frozen features on {about['name']}: {about['train']:,} training and "
        f"{about['test']:,} test images, in percent.\n\n"
        + markdown_table(["metric", "value"], rows)
    )


def number(value: float | None) -> str:
    """Two decimals, or nothing."""
    return "" if value is None else f"{value:.2f}"


def knn_section(result: Mapping[str, Any]) -> str:
    """k-NN as a table."""
    rows = [
        [str(r["k"]), f"{r['temperature']:g}", number(r["top1"]), number(r["top5"])]
        for r in result["results"]
    ]
    return markdown_table(["k", "T", "top-1", "top-5"], rows)


def linear_section(result: Mapping[str, Any]) -> str:
    """Linear evaluation as a table and a sentence."""
    names = ("top1", "top5", "mean_per_class")
    table = markdown_table(
        ["", *names], [["logistic regression", *(number(result[n]) for n in names)]]
    )
    return (
        f"{table}\n\nC = {result['C']:g}, chosen on held-out training images among "
        f"{len(result['validation'])} values."
    )


def class_mean_section(result: Mapping[str, Any]) -> str:
    """The class-mean classifier as a table."""
    names = ("top1", "top5", "mean_per_class")
    rows = [
        [row["space"], *(number(row[n]) for n in names)] for row in result["results"]
    ]
    return markdown_table(["", *names], rows)


def few_shot_section(result: Mapping[str, Any]) -> str:
    """Few-shot: a row for each number of shots, a column for each classifier."""
    rows = result["results"]
    classifiers = list(dict.fromkeys(row["classifier"] for row in rows))
    cells = {
        (row["shots"], row["classifier"]): f"{row['mean']:.2f} ± {row['interval']:.2f}"
        for row in rows
    }
    draws = len(rows[0]["draws"])
    table = markdown_table(
        ["shots", *classifiers],
        [
            [str(n), *(cells[n, classifier] for classifier in classifiers)]
            for n in dict.fromkeys(row["shots"] for row in rows)
        ],
    )
    return f"{table}\n\nMean and 95 % interval over {draws} draws."


def clustering_section(result: Mapping[str, Any]) -> str:
    """Clustering as a table."""
    names = ["accuracy", "nmi", "ari", "purity"]
    table = markdown_table(
        ["linkage", *names], [[result["linkage"], *(number(result[n]) for n in names)]]
    )
    return (
        f"{table}\n\n{result['samples']:,} test images in {result['clusters']} "
        "clusters; accuracy after Hungarian matching; NMI over the "
        f"{result['nmi_average']} mean of the entropies."
    )


def corruption_section(result: Mapping[str, Any]) -> str:
    """Corruption: a row for each corruption and family, a column for each severity."""
    rows = result["results"]
    severities = list(dict.fromkeys(row["severity"] for row in rows))
    table = []
    for family in dict.fromkeys(row["family"] for row in rows):
        members = [row for row in rows if row["family"] == family]
        for name in dict.fromkeys(row["corruption"] for row in members):
            values = [row["top1"] for row in members if row["corruption"] == name]
            table.append([name, family, *map(number, values), number(mean(values))])
        means = [
            mean([row["top1"] for row in members if row["severity"] == severity])
            for severity in severities
        ]
        table.append(
            [f"**{family}**", "", *map(number, means), number(mean(means))],
        )
    header = ["top-1", "family", *(f"severity {s}" for s in severities), "mean"]
    source = (
        "The released ImageNet-C images"
        if result["source"] == "imagenet-c"
        else "Corruptions generated on the fly (not comparable with ImageNet-C)"
    )
    lines = [
        f"{source}, linear probe of clean images: {number(result['clean_top1'])} "
        f"clean, {number(result['mean_top1'])} on average over the common corruptions.",
        markdown_table(header, table),
    ]
    if result["mce"] is not None:
        lines.insert(1, f"**mCE {number(result['mce'])}** (AlexNet = 100).")
    return "\n\n".join(lines)


def transfer_section(result: Mapping[str, Any]) -> str:
    """Transfer as a table."""
    rows = [
        [r["dataset"], r["metric"], number(r["value"]), str(r["train"]), str(r["test"])]
        for r in result["results"]
    ]
    return markdown_table(["dataset", "metric", "value", "train", "test"], rows)


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)


SECTIONS = {
    "knn": knn_section,
    "linear": linear_section,
    "class-mean": class_mean_section,
    "few-shot": few_shot_section,
    "clustering": clustering_section,
    "corruption": corruption_section,
    "transfer": transfer_section,
}
PICTURES = {
    "linear": ("confusion.png",),
    "few-shot": ("few_shot.png",),
    "clustering": ("dendrogram.png",),
    "corruption": ("corruption.png",),
}
