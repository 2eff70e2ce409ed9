"""Tables of what tools/benchmarks/benchmark_loss.py measured, as Markdown."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from varcon_plugin.commands.messages import fail

METHODS = {
    "ours": "VarConLoss (ours)",
    "static": "VarConLoss(num_classes=C)",
    "leave_one_out": "VarConLoss(leave_one_out)",
    "readable": "readable VarCon (autograd)",
    "transcription": "paper transcription",
    "supcon": "SupConLoss (pytorch-metric-learning)",
    "ntxent": "NTXentLoss (lightly)",
}
NOTES = """\
Time as a multiple of the floor: the two matrix products z W^T and p W alone, in memory
allocated beforehand. Memory: how far the peak rises above the inputs. Growth: exponents
between the smallest and the largest case that differ in N, or in C, alone. dtype is
that of the embeddings; VarCon computes in float32 or better. With C > N the centroids
are given, as from a bank; otherwise every one of the C classes is in the batch.
"""

Record = dict[str, Any]


class Case(NamedTuple):
    """Sizes of a batch, and the dtype of its embeddings."""

    n: int
    c: int
    d: int
    dtype: str

    @classmethod
    def parse(cls, text: str) -> Case:
        """From ``"8192x1000x128"`` or ``"8192x1000x128:bfloat16"``."""
        found = re.fullmatch(r"(\d+)x(\d+)x(\d+)(?::(\w+))?", text)
        dtype = found[4] or "float32" if found else ""
        if not found or not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise SystemExit(f'a case is "NxCxD" or "NxCxD:dtype", got {text!r}')
        return cls(int(found[1]), int(found[2]), int(found[3]), dtype)


def machine(device: str) -> str:
    """What the figures were measured on."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    threads, cores = torch.get_num_threads(), os.cpu_count()
    return f"{processor()}, {threads} of {cores} cores, torch {torch.__version__}"


def processor() -> str:
    """The model of this machine's CPU, or its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    name = re.search(r"model name\s*: (.*)", text)
    return name[1] if name else platform.processor() or platform.machine()


def measured_apart(
    module: str,
    arguments: Sequence[Any],
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Record:
    """What ``module`` prints of ``--measure`` in a fresh interpreter.

    Args:
        module: to be run; reads ``arguments`` as JSON.
        arguments: of the measurement.
        environment: variables for it, beside those of this process.

    Raises:
        SystemExit: it fails; says with which arguments, and how.
    """
    command = [sys.executable, "-m", module, "--measure", json.dumps(arguments)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    if done.returncode:
        fail(f"{arguments}: {done.stderr.strip()}")
    record: Record = json.loads(done.stdout.splitlines()[-1])
    return record


def write(folder: Path, records: list[Record], text: str) -> None:
    """Leave ``records`` and the report ``text`` in ``folder``, and print the latter."""
    (folder / "report.json").write_text(json.dumps(records, indent=1) + "\n")
    (folder / "report.md").write_text(text)
    print(f"\n{text}\nWritten: {folder / 'report.md'}")


def figures(record: Record) -> str:
    """Time and memory of one measurement."""
    if "error" in record:
        return "failed"
    return f"{record['ms'] / record['floor_ms']:.2f} x, {record['extra_mb']:,.0f} MB"


def row(*cells: str) -> str:
    """One row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def cost_table(records: list[Record], methods: list[str]) -> list[str]:
    """One row a case: time as a multiple of the floor, and extra memory."""
    lines = [
        row("N", "C", "D", "dtype", "floor", *(METHODS[m] for m in methods)),
        row(*["---:"] * 3, "---", *["---:"] * (1 + len(methods))),
    ]
    by_case: dict[str, dict[str, Record]] = defaultdict(dict)
    for record in records:
        by_case[record["case"]][record["method"]] = record
    for text, found in by_case.items():
        n, c, d, dtype = Case.parse(text)
        floors = [r["floor_ms"] for r in found.values() if "error" not in r]
        floor = f"{statistics.median(floors):,.1f} ms" if floors else ""
        cells = (figures(found[m]) if m in found else "" for m in methods)
        lines.append(row(f"{n:,}", f"{c:,}", f"{d:,}", dtype, floor, *cells))
    return lines


def exponent(records: list[Record], axis: str, field: str) -> str:
    """Of the growth of ``field`` in ``axis`` ("n" or "c"), all else equal."""
    series: dict[Case, list[tuple[int, float]]] = defaultdict(list)
    for record in records:
        case = Case.parse(record["case"])
        if "error" not in record:
            rest = case._replace(n=0) if axis == "n" else case._replace(c=0)
            series[rest].append((getattr(case, axis), max(record[field], 1e-3)))
    lengths = {rest: len(points) for rest, points in series.items()}
    longest = sorted(series[max(lengths, key=lengths.__getitem__)]) if series else []
    if len(longest) < 2:
        return ""
    (small, low), (large, high) = longest[0], longest[-1]
    return f"{math.log(high / low) / math.log(large / small):.2f}"


def growth_table(records: list[Record], methods: list[str]) -> list[str]:
    """One row a method: how time and memory grow in N and in C."""
    lines = [
        row("growth", "time in N", "time in C", "memory in N", "memory in C"),
        row("---", *["---:"] * 4),
    ]
    for method in methods:
        own = [record for record in records if record["method"] == method]
        cells = [exponent(own, x, field) for field in ("ms", "extra_mb") for x in "nc"]
        lines.append(row(METHODS[method], *(f"^{x}" if x else "" for x in cells)))
    return lines


def report(records: list[Record]) -> str:
    """All tables, a pair for each device."""
    lines = ["# Cost of the loss, forward and backward", ""]
    for device in dict.fromkeys(record["device"] for record in records):
        own = [record for record in records if record["device"] == device]
        methods = [m for m in METHODS if m in {record["method"] for record in own}]
        lines += [f"{machine(device)}.", "", *cost_table(own, methods), ""]
        lines += [*growth_table(own, methods), ""]
    return "\n".join([*lines, NOTES])
