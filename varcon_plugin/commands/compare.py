"""Put reports of tools/evaluate.py side by side.

python tools/compare.py REPORT... [--csv FILE]

REPORT is a report.json or the folder that holds it. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

from varcon_plugin.commands.messages import fail
from varcon_plugin.evaluation.report import comparison, markdown_table


def main(argv: list[str] | None = None) -> None:
    """Read the reports and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("reports", nargs="+", type=Path, metavar="REPORT")
    parser.add_argument("--csv", type=Path, help="write the table there too")
    args = parser.parse_args(argv)
    reports = [read(path) for path in args.reports]
    header, rows = comparison(dict(zip(names(args.reports), reports, strict=True)))
    print(markdown_table(header, rows))
    if len({report["data"]["fingerprint"] for report in reports}) > 1:
        print("\nNot the same images: these numbers are not comparable.")
    if args.csv:
        with args.csv.open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])


def read(path: Path) -> dict[str, Any]:
    """A report, of its file or of its folder."""
    file = path / "report.json" if path.is_dir() else path
    try:
        report: dict[str, Any] = json.loads(file.read_text())
        if report["schema_version"] != 1:
            fail(f"{file} has another version of the report's schema")
    except (OSError, ValueError, KeyError, TypeError) as error:
        fail(f"{file} is not a report of tools/evaluate.py: {error!r}")
    return report


def names(paths: list[Path]) -> list[str]:
    """The shortest ends of ``paths`` that tell them apart."""
    folders = [
        path.resolve() if path.is_dir() else path.resolve().parent for path in paths
    ]
    for depth in range(1, 1 + max(len(folder.parts) for folder in folders)):
        short = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(short)) == len(short):
            return short
    return [f"{short} ({number})" for number, short in enumerate(map(str, folders), 1)]
