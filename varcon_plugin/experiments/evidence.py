"""Results of grids as they are kept in the repository, and what is shown of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from varcon_plugin.evaluation.report import markdown_table
from varcon_plugin.experiments.summary import (
    COLOURS,
    DPI,
    PROTOCOLS,
    Estimate,
    Result,
    difference,
    estimate,
)

__all__ = ["draw", "insert", "keep", "read", "table"]

KEPT = ("method", "setting", "seed", "learning_rate", "seconds", "curve")
Group = tuple[str, float | None]  # method and setting


def keep(path: Path, about: str, axis: str, results: Sequence[Result]) -> None:
    """Write the numbers of a grid, without configs, as small as can be read.

    Args:
        path: of the JSON file.
        about: data, recipe and machine, a sentence each.
        axis: what the settings are.
        results: of the cells, in the order in which the table shall show them; the
            first one's method is what the others are compared with.
    """
    rows = [
        json.dumps({k: r[k] for k in (*KEPT, *PROTOCOLS) if k in r}) for r in results
    ]
    head = json.dumps({"about": about, "axis": axis})[:-1]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head + ', "results": [\n' + ",\n".join(rows) + "\n]}\n")


def read(path: Path) -> dict[str, Any]:
    """What `keep` wrote.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        grouped(content["results"])
        content["about"], content["axis"]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not what an experiment kept: {error!r}") from error
    return content


def grouped(results: Sequence[Result]) -> dict[Group, list[Result]]:
    """The runs of each method at each setting."""
    groups: dict[Group, list[Result]] = {}
    for result in results:
        groups.setdefault((result["method"], result["setting"]), []).append(result)
    return groups


def compared(results: Sequence[Result], protocol: str) -> dict[Group, Estimate]:
    """Paired differences: to the first method at a setting, else to the first setting.

    Only of what both have, seed by seed; the compared ones themselves are left out.
    """
    groups = grouped(results)
    first_method, first_setting = next(iter(groups))
    alone = len({method for method, _ in groups}) == 1
    found = {}
    for (method, setting), group in groups.items():
        against = (method, first_setting) if alone else (first_method, setting)
        reference = groups.get(against)
        if reference is not None and reference is not group:
            found[method, setting] = difference(group, reference, protocol)
    return found


def table(content: Mapping[str, Any]) -> str:
    """Means and paired differences of a grid in Markdown."""
    results = content["results"]
    groups = grouped(results)
    protocols = [name for name in PROTOCOLS if name in results[0]]
    differences = {name: compared(results, name) for name in protocols}
    axis = [] if content["axis"] == "recipe" else [content["axis"]]
    header = ["method", *axis]
    for name in protocols:
        header += [f"{PROTOCOLS[name]} top-1", "difference"]
    rows = []
    for (method, setting), group in groups.items():
        row = [method, *([f"{setting:g}"] if axis and setting is not None else axis)]
        for name in protocols:
            row.append(str(estimate([result[name] for result in group])))
            delta = differences[name].get((method, setting))
            row.append("" if delta is None else signed(delta))
        rows.append([*row, str(len(group))])
    return markdown_table([*header, "seeds"], rows)


def signed(delta: Estimate) -> str:
    """A difference with its sign; bold where the interval leaves 0 out."""
    if delta.mean is None:
        return ""
    if delta.interval is None:
        return f"{delta.mean:+.2f}"
    shown = f"{delta.mean:+.2f} ± {delta.interval:.2f}"
    return f"**{shown}**" if abs(delta.mean) > delta.interval else shown


def draw(content: Mapping[str, Any], title: str, path: Path) -> None:
    """Paired differences with their intervals, a panel for each protocol."""
    results = content["results"]
    protocols = [name for name in PROTOCOLS if name in results[0]]
    figure = Figure(figsize=(4 * len(protocols), 3.5), layout="constrained")
    axes = figure.subplots(1, len(protocols), squeeze=False, sharey=True)[0]
    for axis, name, colour in zip(axes, protocols, COLOURS, strict=False):
        found = compared(results, name)
        labels = [m if s is None else f"{m}, {s:g}" for m, s in found]
        means = [delta.mean or 0.0 for delta in found.values()]
        half = [delta.interval or 0.0 for delta in found.values()]
        axis.errorbar(means, labels, xerr=half, fmt="o", color=colour, capsize=3)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set(xlabel="difference (points)", title=PROTOCOLS[name])
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    figure.savefig(path, dpi=DPI)


def insert(page: str, name: str, block: str) -> str:
    """``page`` with ``block`` between the two comments that carry ``name``.

    Raises:
        ValueError: the page has no such comments.
    """
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, found, rest = page.partition(start)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise ValueError(f"the page has no lines {start} and {end}")
    return f"{before}{start}\n{block}\n{end}{after}"
