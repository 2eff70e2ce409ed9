"""What the diagnostics cost: training steps with and without them, side by side.

python tools/benchmarks/benchmark_diagnostics.py  (--help lists the flags)

One torchvision ResNet-18 at 32 pixels, the smallest model anyone would train: on larger
ones the share falls. Plain, measured and stored steps take turns, and the medians of
their differences within a turn are printed: processor time on the CPU, which other work
on the machine disturbs less, and wall time elsewhere.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torchvision.models import resnet18

from varcon_plugin import VarConLoss
from varcon_plugin.health.monitor import DiagnosticsMonitor

DEFAULT_INTERVAL = 50
KINDS = ("plain", "measured", "stored")


class Training:
    """A model in training on a fixed batch of noise."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.images = torch.randn(2 * args.batch, 3, args.size, args.size)
        self.labels = torch.randint(args.classes, (args.batch,)).repeat(2)
        self.model = nn.Sequential(resnet18(num_classes=args.dim))
        self.loss = VarConLoss()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.images, self.labels = (
            self.images.to(args.device),
            self.labels.to(args.device),
        )
        self.model.to(args.device)
        # Steps of kind "measured" have an even number, those of kind "stored" lie in
        # the stored epoch: the two costs are seen apart.
        self.monitor = DiagnosticsMonitor(
            self.loss, folder, interval=2, histogram_epochs=(2,)
        )
        self.numbers = {"plain": (1, 1), "measured": (2, 1), "stored": (1, 2)}

    def step(self, kind: str) -> float:
        """Seconds that one step of this kind takes."""
        on_cpu = self.images.device.type == "cpu"
        clock = time.process_time if on_cpu else time.perf_counter
        synchronize(self.images.device)
        start = clock()
        number, epoch = self.numbers[kind]
        self.monitor.begin_step(number, epoch)
        value = self.loss(self.model(self.images), self.labels)
        self.optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.monitor.end_step()
        synchronize(self.images.device)
        return clock() - start


def synchronize(device: torch.device) -> None:
    """Wait for the device, if it is one to wait for."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def main() -> None:
    """Print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128, help="images of two views")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--dim", type=int, default=128, help="of the embeddings")
    parser.add_argument(
        "--size", type=int, default=32, help="pixels of an image's side"
    )
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        training = Training(args, Path(folder))
        for kind in KINDS:
            training.step(kind)
        turns = [
            {kind: training.step(kind) for kind in KINDS} for _ in range(args.turns)
        ]
    plain = statistics.median(turn["plain"] for turn in turns)
    extra = {
        kind: statistics.median(turn[kind] - turn["plain"] for turn in turns)
        for kind in KINDS[1:]
    }
    print(f"step without diagnostics       {1e3 * plain:8.2f} ms")
    print(f"more on a measured step        {1e3 * extra['measured']:8.2f} ms")
    print(f"more on a step that is stored  {1e3 * extra['stored']:8.2f} ms")
    share = extra["measured"] / DEFAULT_INTERVAL / plain
    print(f"at the default interval of {DEFAULT_INTERVAL}: {share:.3%} of a step")
