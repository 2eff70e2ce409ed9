r"""Memory and time of a training step in micro-batches, by their size.

    python tools/benchmarks/benchmark_micro_batches.py
    python tools/benchmarks/benchmark_micro_batches.py --batch 64 --sizes 16 4 \
        --dtype bfloat16 --repeats 3

A step is ResNet-50 with a projection head, the loss and the backward pass; the first
figure is that of the plain step, which needs 23 GB for 256 images of 224 pixels in
float32, half of it in bfloat16. Each figure comes from a process of its own: memory is
the peak of a step above model, gradients and images, on a CPU with an allocator that
gives back what is freed, so that it is what the tensors hold; time the median of steps
with the allocator as it is. Writes report.md, report.json and, where matplotlib is
installed, micro_batches.png to work_dirs/benchmark_micro_batches.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from varcon_plugin import VarConLoss
from varcon_plugin.commands.benchmarks.loss import memory, reset_peak, seconds
from varcon_plugin.commands.benchmarks.report import (
    machine,
    measured_apart,
    row,
    write,
)
from varcon_plugin.training.micro_batches import in_micro_batches

SIZES = (128, 64, 32, 16, 8)
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}  # glibc: tensors from 1 MiB
CLASSES = 1000
HIDDEN, DIM = 2048, 128

Record = dict[str, Any]


def encoder() -> nn.Module:
    """ResNet-50 with SimCLR's projection head."""
    from torchvision.models import resnet50

    model: nn.Module = resnet50()
    model.fc = nn.Sequential(
        nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, DIM)
    )
    return model


def measure(
    field: str,
    size: int | None,
    batch: int,
    pixels: int,
    dtype: str,
    repeats: int,
    device: str,
) -> Record:
    """``"mb"`` or ``"s"`` of one step; ``size`` None runs the whole batch at once."""
    torch.manual_seed(0)
    model = encoder().to(device)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    images = torch.randn(batch, 3, pixels, pixels, device=device)
    labels = torch.randint(CLASSES, (batch,), device=device)
    half = dtype != "float32"

    def step(images: Tensor = images, labels: Tensor = labels) -> None:
        with torch.autocast(device, getattr(torch, dtype), enabled=half):
            embeddings = in_micro_batches(model, images, size, [model])
        VarConLoss(num_classes=CLASSES)(embeddings, labels).backward()  # type: ignore[no-untyped-call]

    step(images[:2], labels[:2])  # load what is lazy
    if field == "mb":
        reset_peak(device)
        before, _ = memory(device)
        step()
        return {"mb": (memory(device)[1] - before) / 2**20}
    step()
    return {"s": statistics.median(seconds(step, device) for _ in range(repeats))}


def in_own_processes(size: int | None, *settings: Any) -> Record:
    """`measure` of each field in a fresh interpreter."""
    batch, pixels, dtype, _, device = settings
    record = {"size": size, "batch": batch, "pixels": pixels, "dtype": dtype}
    record["device"] = device
    for field, environment in (("mb", GIVES_BACK), ("s", {})):
        record |= measured_apart(__name__, (field, size, *settings), environment)
    return record


def report(records: list[Record]) -> str:
    """A row for each size, beside the plain step."""
    plain = records[0]
    lines = [
        "# A step in micro-batches",
        "",
        f"ResNet-50, {plain['batch']:,} images of {plain['pixels']} pixels, "
        f"{plain['dtype']}; {machine(plain['device'])}.",
        "",
        row("micro-batch", "memory", "of plain", "time", "of plain"),
        row(*["---:"] * 5),
    ]
    lines += [
        row(
            "plain" if record["size"] is None else f"{record['size']:,}",
            f"{record['mb']:,.0f} MB",
            f"1 / {plain['mb'] / record['mb']:.1f}",
            f"{record['s']:.2f} s",
            f"{record['s'] / plain['s']:.2f} x",
        )
        for record in records
    ]
    return "\n".join(lines) + "\n"


def draw(records: list[Record], path: Path) -> None:
    """Memory and time, as shares of the plain step, against the micro-batch size."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    plain, *others = records
    sizes = [record["size"] for record in others]
    figure, axes = plt.subplots(1, 2, figsize=(7.5, 3), layout="constrained")
    for axis, field, title, unit, factor in (
        (axes[0], "mb", "Peak memory above model and images", "GB", 1024),
        (axes[1], "s", "Time of a step", "s", 1),
    ):
        axis.plot(sizes, [r[field] / factor for r in others], "o-", color="#1f5fa8")
        axis.axhline(plain[field] / factor, color="#666666", linestyle="--")
        axis.annotate(
            "plain step",
            (sizes[-1], plain[field] / factor),
            xytext=(0, -11),
            textcoords="offset points",
            color="#666666",
        )
        axis.set(title=title, ylabel=unit, xlabel="images in a micro-batch")
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    """Parse the arguments; measure one figure, or all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--batch", type=int, default=256)
    add("--sizes", type=int, nargs="+", default=SIZES)
    add("--pixels", type=int, default=224)
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--repeats", type=int, default=1)
    add("--out", type=Path, default=Path("work_dirs/benchmark_micro_batches"))
    add("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.measure:
        print(json.dumps(measure(*json.loads(args.measure))))
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    args.out.mkdir(parents=True, exist_ok=True)
    settings = (args.batch, args.pixels, args.dtype, args.repeats, device)
    records = []
    for size in (None, *args.sizes):
        records.append(in_own_processes(size, *settings))
        print(f"{records[-1]}", flush=True)
    if importlib.util.find_spec("matplotlib"):
        draw(records, args.out / "micro_batches.png")
    write(args.out, records, report(records))


if __name__ == "__main__":
    main()
