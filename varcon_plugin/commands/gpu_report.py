"""Test and time this package on a GPU, and write one file to attach to a report.

    make test-gpu

Runs the tests marked ``gpu``, then times for two minutes: the loss beside its two
matrix products in float32 and in TF32, the augmentation of 1,024 views of 224 pixels,
and training steps of a ResNet-50 in half precision in both memory layouts. Writes
work_dirs/test_gpu/report.md. Ends with an error if a test fails or there is no GPU.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from varcon_plugin import VarConLoss
from varcon_plugin.commands.benchmarks.report import row
from varcon_plugin.commands.messages import fail
from varcon_plugin.training import BatchAugment
from varcon_plugin.training.lars import ForeachLARS

__all__ = ["main"]

OUT = Path("work_dirs/test_gpu/report.md")
REPEATS = 20
LOSS_SIZES = ((8192, 1000), (8192, 10_000), (8192, 100_000))
PRECISIONS = (("float32", "highest"), ("TF32", "high"))
DIM, IMAGES, SIZE = 128, 128, 224


def main() -> None:
    """Test, time and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        fail("torch finds no GPU of NVIDIA here: nothing was tested")
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider"]
    print("1/2 Tests", flush=True)
    tests = subprocess.run(command, capture_output=True, text=True, check=False)
    print(tests.stdout[-2000:])
    print("2/2 Timing, about two minutes", flush=True)
    parts = [machine(), "## Tests", f"```\n{tests.stdout[-6000:]}\n```", *timings()]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n\n".join(parts) + "\n")
    print(f"Look at {args.out}")
    if tests.returncode:
        fail("tests failed on this GPU; the report has the details")


def machine() -> str:
    """What it ran on."""
    properties = torch.cuda.get_device_properties(0)
    gigabytes = properties.total_memory / 2**30
    return (
        f"# {properties.name}, {gigabytes:.0f} GiB, compute capability "
        f"{properties.major}.{properties.minor}, torch {torch.__version__}, CUDA "
        f"{torch.version.cuda}"
    )


def timings() -> list[str]:
    """Tables of milliseconds."""
    return ["## Milliseconds, median", loss_table(), step_table()]


def milliseconds(task: Callable[[], object]) -> float:
    """Median over repetitions, by events on the GPU, after three to warm up."""
    for _ in range(3):
        task()
    times: list[float] = []
    cuda: Any = torch.cuda  # its events are untyped
    for _ in range(REPEATS):
        start, end = (cuda.Event(enable_timing=True) for _ in "ab")
        start.record()
        task()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def loss_table() -> str:
    """The loss, forward and backward, beside z W^T and p W."""
    lines = [row("N", "C", "", "loss", "two products"), row(*["---"] * 5)]
    for (count, classes), (name, precision) in product(LOSS_SIZES, PRECISIONS):
        torch.set_float32_matmul_precision(precision)
        figures = (f"{figure:.2f}" for figure in loss_and_floor(count, classes))
        lines.append(row(f"{count:,}", f"{classes:,}", name, *figures))
    torch.set_float32_matmul_precision("highest")
    return "\n".join(lines)


def loss_and_floor(count: int, classes: int) -> tuple[float, float]:
    """Milliseconds of the loss, and of two products of its size."""
    z = torch.randn(count, DIM, device="cuda", requires_grad=True)
    w = normalize(torch.randn(classes, DIM, device="cuda"), dim=1)
    labels = torch.arange(count, device="cuda") % classes
    criterion, unit = VarConLoss(num_classes=classes), normalize(z.detach(), dim=1)
    ours = milliseconds(lambda: torch.autograd.backward(criterion(z, labels)))
    return ours, milliseconds(lambda: (unit @ w.T) @ w)


def step_table() -> str:
    """Augmentation, and steps of a ResNet-50, of `IMAGES` images in two views."""
    shape = (IMAGES, SIZE, SIZE, 3)
    crops = [torch.randint(0, 256, shape, dtype=torch.uint8).cuda() for _ in "ab"]
    augment = BatchAugment(channels_last=True)
    each = {"augmentation": milliseconds(lambda: augment(crops))}
    views = torch.cat(augment(crops))
    each["step, contiguous"] = step_time(views, torch.contiguous_format)
    each["step, channels-last"] = step_time(views, torch.channels_last)
    title = f"{2 * IMAGES} views of {SIZE}"
    lines = [row(title, "ms", "images / s"), row(*["---"] * 3)]
    lines += [row(n, f"{t:.1f}", f"{1e3 * IMAGES / t:,.0f}") for n, t in each.items()]
    return "\n".join(lines)


def step_time(views: Tensor, layout: torch.memory_format) -> float:
    """Milliseconds of forward, backward and LARS, cuDNN's search on."""
    from mmpretrain.models import ResNet

    torch.backends.cudnn.benchmark = True
    net = ResNet(depth=50).cuda().to(memory_format=layout)
    optimizer = ForeachLARS(net.parameters(), lr=0.1, momentum=0.9)
    views = views.contiguous(memory_format=layout)
    labels = torch.arange(IMAGES, device="cuda").repeat(2)
    criterion = VarConLoss(num_classes=1000)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            features = net(views)[-1].mean(dim=(2, 3))
        torch.autograd.backward(criterion(features[:, :DIM].float(), labels))
        optimizer.step()

    return milliseconds(step)


if __name__ == "__main__":
    main()
