r"""Cost of a step with a bank spread over the ranks, by classes and ranks.

    python tools/benchmarks/benchmark_sharded.py
    python tools/benchmarks/benchmark_sharded.py --paper
    python tools/benchmarks/benchmark_sharded.py --classes 1000000 --ranks 4 \
        --negatives 100000

A step is the loss of N raw embeddings over all ranks, their gradient and the update of
the bank, all of whose classes have been seen. Every figure comes from fresh gloo
processes, one thread each, on this machine: more ranks do not mean more hardware. Time
is the median of the slowest rank. Memory is the most of any rank: ``bank`` is what
stays, ``step`` the peak above it. ``--paper`` measures nothing and prints bytes,
operations and traffic of large settings from the formulas alone. Writes report.md and
report.json to work_dirs/benchmark_sharded.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import multiprocessing

from varcon_plugin import MomentumCentroids, VarConLoss
from varcon_plugin.commands.benchmarks.loss import median_ms, memory, reset_peak
from varcon_plugin.commands.benchmarks.report import machine, row, write
from varcon_plugin.distributed import leave_group

CLASSES = (10_000, 100_000, 1_000_000)
RANKS = (1, 2, 4)
FLOAT, INT, BOOL = 4, 8, 1  # bytes

Record = dict[str, Any]


class Setting(NamedTuple):
    """A job on paper: classes, ranks, embeddings of each rank, their dimension."""

    classes: int
    ranks: int
    samples: int
    dim: int
    share: float = 1.0  # of the classes that is scored


PAPER = tuple(
    Setting(classes, ranks, 128, dim, share)
    for classes, ranks in ((1_000_000, 8), (10_000_000, 8), (100_000_000, 64))
    for dim in (128, 512)
    for share in (1.0, 0.1)
)


def on_paper(setting: Setting) -> dict[str, float]:
    """What one rank stores, computes and hands to the network in a step.

    Traffic counts the bytes that leave a rank when all-reduce and all-gather go round
    in a ring: 2 (W - 1) / W and W - 1 times what it hands over.
    """
    classes, ranks, samples, dim, share = setting
    rows, everyone = -(-classes // ranks), ranks * samples
    scored = rows * share
    gathered = samples * (dim * FLOAT + INT)
    reduced = (everyone + dim + 2 + everyone + 2 * everyone) * FLOAT
    exchanged = everyone * dim * FLOAT
    return {
        "bank": rows * (2 * dim * FLOAT + INT + BOOL),
        "whole": classes * (2 * dim * FLOAT + INT + BOOL),
        "batch": 4 * everyone * dim * FLOAT,  # embeddings, weighted sum, w_r, parts
        "operations": 4 * everyone * scored * dim,
        "traffic": (ranks - 1) * gathered
        + (2 * reduced + exchanged) * (ranks - 1) / ranks,
        "learned": 3 * rows * dim * FLOAT + everyone * scored * FLOAT,
    }


def paper_report() -> str:
    """The settings of ``PAPER`` as a table."""
    lines = [
        row(
            "C",
            "ranks",
            "D",
            "scored",
            "whole bank",
            "bank a rank",
            "batch a rank",
            "operations a rank",
            "traffic a rank",
            "learned centres a rank",
        ),
        row(*["---:"] * 10),
    ]
    for setting in PAPER:
        found = on_paper(setting)
        lines.append(
            row(
                f"{setting.classes:,}",
                f"{setting.ranks}",
                f"{setting.dim}",
                f"{setting.share:.0%}",
                f"{found['whole'] / 1e9:,.1f} GB",
                f"{found['bank'] / 1e9:,.2f} GB",
                f"{found['batch'] / 1e6:,.1f} MB",
                f"{found['operations'] / 1e12:,.2f} TFLOP",
                f"{found['traffic'] / 1e6:,.1f} MB",
                f"{found['learned'] / 1e9:,.2f} GB",
            )
        )
    lines += [
        "",
        f"{PAPER[0].samples} embeddings a rank, float32. Bank: moving averages, unit "
        "references, counts, seen. Operations: two matrix products. Learned centres: "
        "weight, gradient and momentum of each row and one logit a sample and row.",
    ]
    return "\n".join(lines) + "\n"


def measure(
    rank: int,
    ranks: int,
    classes: int,
    negatives: int | None,
    samples: int,
    dim: int,
    folder: str,
) -> None:
    """One rank's part of a figure, written to ``folder``."""
    torch.set_num_threads(1)
    # Freeing this makes glibc keep what is freed later: see benchmarks/loss.py.
    torch.empty(31 * 2**20, dtype=torch.uint8)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks
    )
    torch.manual_seed(rank)
    mine = len(range(rank, samples, ranks))
    x = torch.randn(mine, dim).requires_grad_()
    labels = torch.randint(classes, (mine,))
    warm = VarConLoss(centroids=MomentumCentroids(8, dim, sharded=True))
    warm(x, labels % 8).backward()  # type: ignore[no-untyped-call]  # load lazy
    before, _ = memory("cpu")
    bank = MomentumCentroids(classes, dim, num_negatives=negatives, sharded=True)
    bank.means.normal_()
    bank.units.copy_(torch.nn.functional.normalize(bank.means))
    bank.seen.fill_(True)
    bank.counts.fill_(1)
    criterion = VarConLoss(centroids=bank)

    def step() -> None:
        x.grad = None
        criterion(x, labels).backward()  # type: ignore[no-untyped-call]

    held, _ = memory("cpu")
    reset_peak("cpu")
    step()
    _, peak = memory("cpu")
    # A fixed number of steps: every rank must call as often as the others.
    times = [median_ms([step], "cpu", 0.0)[0] for _ in range(3)]
    record = {
        "bank": held - before,
        "step": peak - held,
        "ms": sorted(times)[1],
        "rows": len(bank.means),
    }
    Path(folder, f"{rank}.json").write_text(json.dumps(record))
    leave_group()


def cell(
    ranks: int, classes: int, negatives: int | None, samples: int, dim: int
) -> Record:
    """`measure` on ``ranks`` fresh processes; the worst of them."""
    with tempfile.TemporaryDirectory() as folder:
        spawn: Any = multiprocessing.spawn  # type: ignore[attr-defined]
        arguments = (ranks, classes, negatives, samples, dim, folder)
        spawn(measure, arguments, nprocs=ranks)
        parts = [
            json.loads(Path(folder, f"{rank}.json").read_text())
            for rank in range(ranks)
        ]
    worst = {name: max(part[name] for part in parts) for name in parts[0]}
    return {
        "classes": classes,
        "ranks": ranks,
        "negatives": negatives,
        "samples": samples,
        "dim": dim,
        **worst,
    }


def report(records: list[Record]) -> str:
    """A row for each number of classes and ranks."""
    first = records[0]
    lines = [
        "# A bank spread over the ranks",
        "",
        f"N = {first['samples']:,} embeddings over all ranks, D = {first['dim']:,}, "
        f"float32, gloo; {machine('cpu')}.",
        "",
        row("C", "ranks", "negatives", "rows a rank", "bank", "step", "time"),
        row(*["---:"] * 7),
    ]
    lines += [
        row(
            f"{r['classes']:,}",
            f"{r['ranks']}",
            "all" if r["negatives"] is None else f"{r['negatives']:,}",
            f"{r['rows']:,}",
            f"{r['bank'] / 2**20:,.0f} MB",
            f"{r['step'] / 2**20:,.0f} MB",
            f"{r['ms']:,.0f} ms",
        )
        for r in records
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Parse the arguments; measure, or calculate."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--classes", type=int, nargs="+", default=CLASSES)
    add("--ranks", type=int, nargs="+", default=RANKS)
    add("--negatives", type=int, help="of the loss; default: all classes")
    add("--samples", type=int, default=512)
    add("--dim", type=int, default=128)
    add("--paper", action="store_true", help="calculate, measure nothing")
    add("--out", type=Path, default=Path("work_dirs/benchmark_sharded"))
    args = parser.parse_args(argv)
    if args.paper:
        print(paper_report())
        return
    args.out.mkdir(parents=True, exist_ok=True)
    records = []
    for classes in args.classes:
        for ranks in args.ranks:
            record = cell(ranks, classes, args.negatives, args.samples, args.dim)
            records.append(record)
            print(
                f"C = {classes:,}, {ranks} ranks: {record['ms']:,.0f} ms, bank "
                f"{record['bank'] / 2**20:,.0f} MB",
                flush=True,
            )
    write(args.out, records, report(records))


if __name__ == "__main__":
    main()
