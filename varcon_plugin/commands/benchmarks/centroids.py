r"""Time and memory of a step with `MomentumCentroids`, by the number of classes.

    python tools/benchmarks/benchmark_centroids.py
    python tools/benchmarks/benchmark_centroids.py --classes 1000 1000000 \
        --negatives 4000 16000

writes work_dirs/benchmark_centroids/report.md and report.json. A step is the loss of N
raw embeddings of random classes, its gradient, and the update of the bank, all of whose
classes have been seen. Each figure comes from a process of its own. Memory is what the
first step takes beside the bank, at its peak.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch

from varcon_plugin import MomentumCentroids, VarConLoss
from varcon_plugin.commands.benchmarks.loss import median_ms, memory, reset_peak
from varcon_plugin.commands.benchmarks.report import (
    machine,
    measured_apart,
    row,
    write,
)

CLASSES = (1_000, 4_000, 16_000, 64_000, 256_000, 1_000_000)
NEGATIVES = (8_000, 16_000)
SECONDS = 2.0  # of repetitions for a figure

Record = dict[str, Any]


def measure(
    classes: int, negatives: int | None, samples: int, dim: int, device: str
) -> Record:
    """Time and extra memory of one step; ``negatives`` None scores all classes."""
    # Freeing this makes glibc keep what is freed later: see benchmarks/loss.py.
    torch.empty(31 * 2**20, dtype=torch.uint8)
    torch.manual_seed(0)
    bank = MomentumCentroids(classes, dim, num_negatives=negatives)
    state = bank.state_dict()
    state["means"].normal_()
    state["seen"].fill_(True)
    state["counts"].fill_(1)
    bank.load_state_dict(state)
    criterion = VarConLoss(centroids=bank).to(device)
    x = torch.randn(samples, dim, device=device).requires_grad_()
    labels = torch.randint(classes, (samples,)).to(device)

    def step() -> None:
        x.grad = None
        criterion(x, labels).backward()  # type: ignore[no-untyped-call]

    warm = VarConLoss(centroids=MomentumCentroids(8, dim, num_negatives=4)).to(device)
    few = x.detach()[:8].requires_grad_()
    warm(few, torch.arange(8, device=device)).backward()  # type: ignore[no-untyped-call]  # load lazy
    reset_peak(device)
    before, _ = memory(device)
    step()
    extra = memory(device)[1] - before
    (ms,) = median_ms([step], device, SECONDS)
    return {
        "classes": classes,
        "negatives": negatives,
        "samples": samples,
        "dim": dim,
        "device": device,
        "ms": ms,
        "extra_mb": extra / 2**20,
        "bank_mb": sum(x.nbytes for x in (*state.values(), bank.units)) / 2**20,
    }


def in_own_process(*arguments: Any) -> Record:
    """`measure` in a fresh interpreter."""
    return measured_apart(__name__, arguments)


def exponent(records: list[Record], field: str) -> str:
    """Of the growth of ``field`` in C, over the upper half of the sizes."""
    ordered = sorted(records, key=lambda record: record["classes"])
    low, high = ordered[len(ordered) // 2], ordered[-1]
    if low["classes"] == high["classes"]:
        return ""
    ratio = max(high[field], 1e-3) / max(low[field], 1e-3)
    return f"C^{math.log(ratio) / math.log(high['classes'] / low['classes']):.2f}"


def report(records: list[Record]) -> str:
    """A row for each number of classes, and the growth below."""
    first = records[0]
    columns = list(dict.fromkeys(record["negatives"] for record in records))
    titles = [f"num_negatives={n:,}" if n else "all classes" for n in columns]
    cells = {(r["classes"], r["negatives"]): r for r in records}
    lines = [
        "# Cost of a step with momentum centroids",
        "",
        f"N = {first['samples']:,} embeddings, D = {first['dim']:,}, float32; "
        f"{machine(first['device'])}.",
        "",
        row("C", "bank", *titles),
        row(*["---:"] * (2 + len(columns))),
    ]
    for classes in sorted({record["classes"] for record in records}):
        found = [cells[classes, negatives] for negatives in columns]
        figures = (f"{r['ms']:,.1f} ms, {r['extra_mb']:,.0f} MB" for r in found)
        bank = f"{found[0]['bank_mb']:,.1f} MB"
        lines.append(row(f"{classes:,}", bank, *figures))
    growth = []
    for negatives in columns:
        own = [r for r in records if r["negatives"] == negatives]
        growth.append(f"{exponent(own, 'ms')}, {exponent(own, 'extra_mb')}")
    lines += [row("growth", "", *growth), ""]
    lines.append("Growth: of the upper half of the sizes, time and memory.")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Parse the arguments; measure one figure, or all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--classes", type=int, nargs="+", default=CLASSES)
    add("--negatives", type=int, nargs="+", default=NEGATIVES)
    add("--samples", type=int, default=512)
    add("--dim", type=int, default=128)
    add("--out", type=Path, default=Path("work_dirs/benchmark_centroids"))
    add("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.measure:
        print(json.dumps(measure(*json.loads(args.measure))))
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    args.out.mkdir(parents=True, exist_ok=True)
    todo = [(c, n) for c in args.classes for n in (None, *args.negatives)]
    records = []
    for i, (classes, negatives) in enumerate(todo, 1):
        record = in_own_process(classes, negatives, args.samples, args.dim, device)
        records.append(record)
        scored = "all classes" if negatives is None else f"{negatives:,} others"
        print(
            f"[{i}/{len(todo)}] C = {classes:,}, {scored}: {record['ms']:,.1f} ms, "
            f"{record['extra_mb']:,.0f} MB",
            flush=True,
        )
    write(args.out, records, report(records))


if __name__ == "__main__":
    main()
