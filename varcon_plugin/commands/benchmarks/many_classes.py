r"""What do really many classes teach, and what do their references cost in accuracy?

    python tools/benchmarks/benchmark_many_classes.py --data CIFAR10 --seeds 0 1 2
    python tools/benchmarks/benchmark_many_classes.py --data CIFAR10 --jobs 2 \
        --learning-rates 3e-4 1e-3 3e-3 --trial-epochs 10

``--data`` holds ``train/CLASS/*.png`` and ``test/CLASS/*.png``. Every training image
is a class of its own, of which a batch holds two views; k-NN then says how well the
true classes, which no run has seen, can be told apart. Four sources of
references see the same images, views and initial weights for equally many steps: the
bank whole, the bank on two processes with half of each batch each, the bank with
``num_negatives`` a tenth of the classes, and the means of the batch alone. Nothing in
the network normalises over the batch, so two processes compute what one does. Of
several ``--learning-rates`` each source gets the one with the best k-NN accuracy on
other training images, after ``--trial-epochs`` with a seed of its own; the spread bank
takes that of the whole one. Writes report.md and report.json to
work_dirs/benchmark_many_classes; cells found in the latter are not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from varcon_plugin import MomentumCentroids, VarConLoss
from varcon_plugin.commands.benchmarks.report import machine, row
from varcon_plugin.commands.messages import fail
from varcon_plugin.distributed import leave_group
from varcon_plugin.evaluation.knn import knn_accuracy
from varcon_plugin.training.batch_augment import BatchAugment

ARMS = {
    "whole": "bank, whole",
    "sharded": "bank, spread over 2 processes",
    "negatives": "bank, 10 % of the classes drawn",
    "batch": "means of the batch",
}
PIXELS = 16
FEATURES, DIM = 128, 128
MOMENTUM = 0.5  # two views an epoch: a quarter of the last epoch's reference is left
WEIGHT_DECAY = 1e-4
TRIAL_SEED = 1000
NEIGHBORS, KNN_TEMPERATURE = 20, 0.1
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's, two-sided, by seeds

Record = dict[str, Any]


class Split(NamedTuple):
    """Images (N, 3, 32, 32) uint8 and their true classes (N,)."""

    images: Tensor
    labels: Tensor


class Plan(NamedTuple):
    """One cell: how to train, on what."""

    arm: str
    seed: int
    epochs: int
    batch_size: int
    learning_rate: float
    trial: bool

    def same(self, record: Record) -> bool:
        """Whether ``record`` is of this cell."""
        return self._asdict().items() <= record.items()


class Data(NamedTuple):
    """Where the images are that cells train on, and what judges them.

    Attributes:
        folder: with ``train`` and ``test``.
        classes: images to train on.
        judged: images held out of ``train``, and of ``test``.
    """

    folder: Path
    classes: int
    judged: int

    def train(self) -> Split:
        """The images that are classes."""
        return load(self.folder / "train", self.classes)

    def held_out(self) -> Split:
        """Other training images."""
        return load(self.folder / "train", self.judged, skipped=self.classes)

    def test(self) -> Split:
        """Images that no choice looks at."""
        return load(self.folder / "test", self.judged)


class Encoder(nn.Module):
    """Four convolutions, and a projection head for training."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, 64, FEATURES)
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(pairwise(widths)):
            layers += [
                nn.Conv2d(before, after, 3, stride=1 if i == 0 else 2, padding=1),
                nn.GroupNorm(8, after),
                nn.ReLU(),
            ]
        self.backbone = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Sequential(
            nn.Linear(FEATURES, FEATURES), nn.ReLU(), nn.Linear(FEATURES, DIM)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings (N, DIM)."""
        embeddings: Tensor = self.head(self.backbone(images))
        return embeddings


def load(folder: Path, limit: int, skipped: int = 0) -> Split:
    """``limit`` images of a folder of class folders, evenly over them.

    After the first ``skipped``, evenly too.
    """
    from PIL import Image

    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    each, start = -(-limit // len(classes)), -(-skipped // len(classes))
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted(name.iterdir())[start : start + each]
    ][:limit]
    if len(files) < limit:
        missing = limit - len(files)
        fail(f"{folder} must hold {skipped + limit:,} images: {missing:,} are missing")
    pixels = [np.array(Image.open(path).convert("RGB")) for path, _ in files]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    return Split(images, torch.tensor([label for _, label in files]))


def crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random squares of 20 to 100 % of the area (N, 3, PIXELS, PIXELS) uint8."""
    area, x, y = torch.rand(3, len(images), generator=generator)
    side = (0.2 + 0.8 * area).sqrt()
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, 0, 2], theta[:, 1, 2] = (1 - side) * (2 * x - 1), (1 - side) * (2 * y - 1)
    grid = F.affine_grid(theta, [len(images), 3, PIXELS, PIXELS], align_corners=False)
    return F.grid_sample(images.float(), grid, align_corners=False).round().byte()


def references(arm: str, classes: int) -> VarConLoss:
    """The loss of an arm."""
    if arm == "batch":
        return VarConLoss(num_classes=classes)
    negatives = classes // 10 if arm == "negatives" else None
    bank = MomentumCentroids(
        classes,
        DIM,
        MOMENTUM,
        num_negatives=negatives,
        sharded=arm == "sharded",
    )
    return VarConLoss(centroids=bank)


def train(plan: Plan, data: Data) -> Record:
    """Train one cell on the ranks of the process group, and judge it."""
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if dist.is_initialized() else 0
    torch.manual_seed(plan.seed)
    encoder = Encoder()
    model = encoder if ranks == 1 else DistributedDataParallel(encoder)
    training = data.train()
    judged = data.held_out() if plan.trial else data.test()
    size = data.classes
    criterion = references(plan.arm, size)
    steps = plan.epochs * (size // plan.batch_size)
    optimizer = torch.optim.AdamW(
        encoder.parameters(), plan.learning_rate, weight_decay=WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    augment = BatchAugment(
        brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, blur_prob=0.0
    )
    augment.restart(plan.seed, 0, 0)  # the same views on every rank
    generator = torch.Generator().manual_seed(plan.seed)
    losses = []
    start = time.perf_counter()
    for _ in range(plan.epochs):
        order = torch.randperm(size, generator=generator)
        batches = torch.split(order, plan.batch_size)
        for chosen in batches[: size // plan.batch_size]:
            images = training.images[chosen]
            views = augment([crop(images, generator) for _ in range(2)])
            mine = torch.cat([view[rank::ranks] for view in views])
            loss = criterion(model(mine), chosen[rank::ranks].repeat(2))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
    mean = torch.stack(losses[-(size // plan.batch_size) :]).mean()
    if ranks > 1:
        dist.all_reduce(mean)
    return {
        **plan._asdict(),
        "classes": size,
        "loss": float(mean) / ranks,
        "knn": judge(encoder, training, judged),
        "seconds": time.perf_counter() - start,
    }


@torch.no_grad()
def judge(encoder: Encoder, train: Split, test: Split) -> float:
    """k-NN top-1 (%) of the true classes, by the features of the backbone."""
    plain = BatchAugment(flip_prob=0, jitter_prob=0, grayscale_prob=0, blur_prob=0)

    def features(images: Tensor) -> Tensor:
        pieces = []
        for piece in torch.split(images, 500):
            small = F.interpolate(piece.float(), size=PIXELS, mode="area")
            pieces.append(encoder.backbone(plain([small.round().byte()])[0]))
        return torch.cat(pieces)

    found = knn_accuracy(
        features(train.images),
        train.labels,
        features(test.images),
        test.labels,
        ks=[NEIGHBORS],
        temperatures=[KNN_TEMPERATURE],
    )
    return float(found[NEIGHBORS, KNN_TEMPERATURE].top1)


def on_a_rank(rank: int, store: str, plan: Plan, data: Data, out: str) -> None:
    """`train` in one of two processes."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    record = train(plan, data)
    if rank == 0:
        Path(out).write_text(json.dumps(record))
    leave_group()


def cell(plan: Plan, data: Data) -> Record:
    """`train`, in as many processes as the arm has."""
    if plan.arm != "sharded":
        return train(plan, data)
    with tempfile.TemporaryDirectory() as folder:
        store, out = str(Path(folder) / "store"), Path(folder) / "record"
        spawn: Any = multiprocessing.spawn  # type: ignore[attr-defined]
        spawn(on_a_rank, (store, plan, data, str(out)), nprocs=2)
        record: Record = json.loads(out.read_text())
        return record


def interval(values: list[float]) -> str:
    """Mean and the half width of its 95 % interval."""
    mean = statistics.mean(values)
    if len(values) not in T_95:
        return f"{mean:.2f}"
    half = T_95[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.2f} ± {half:.2f}"


def report(records: list[Record]) -> str:
    """A row for each source of references."""
    first = records[0]
    seeds = sorted({record["seed"] for record in records})
    lines = [
        "# Every image its own class",
        "",
        f"C = {first['classes']:,} images, batches of {first['batch_size']} with two "
        f"views each, {first['epochs']} epochs, seeds {', '.join(map(str, seeds))}; "
        f"k-NN (k = {NEIGHBORS}) on the true classes, %, mean and 95 % interval; "
        f"{machine('cpu')}.",
        "",
        row("references", "learning rate", "k-NN", "each seed", "loss, last epoch"),
        row("---", *["---:"] * 4),
    ]
    for arm, title in ARMS.items():
        own = sorted(
            (r for r in records if r["arm"] == arm), key=lambda record: record["seed"]
        )
        if own:
            each = ", ".join(f"{r['knn']:.2f}" for r in own)
            loss = ", ".join(f"{r['loss']:.4f}" for r in own)
            rate = f"{own[0]['learning_rate']:g}"
            accuracy = interval([r["knn"] for r in own])
            lines.append(row(title, rate, accuracy, each, loss))
    return "\n".join(lines) + "\n"


class Bench(NamedTuple):
    """Runs cells that are not in the file yet, some at a time, and keeps them there."""

    file: Path
    data: Data
    jobs: int

    def records(self) -> list[Record]:
        """Those in the file."""
        found: list[Record] = []
        if self.file.exists():
            found = json.loads(self.file.read_text())
        return found

    def run(self, plans: list[Plan]) -> list[Record]:
        """A record for each plan."""
        size = {"classes": self.data.classes}
        records = [r for r in self.records() if size.items() <= r.items()]
        todo = [plan for plan in plans if not any(map(plan.same, records))]
        for record in self.results(todo):
            kept = [*self.records(), record]
            self.file.write_text(json.dumps(kept, indent=1) + "\n")
            records.append(record)
            print(
                f"{ARMS[record['arm']]}, seed {record['seed']}, learning rate "
                f"{record['learning_rate']:g}: k-NN {record['knn']:.2f} %, "
                f"{record['seconds']:.0f} s",
                flush=True,
            )
        return [next(filter(plan.same, records)) for plan in plans]

    def results(self, plans: list[Plan]) -> Iterator[Record]:
        """Records as they come."""
        if self.jobs == 1:
            yield from (cell(plan, self.data) for plan in plans)
            return
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.jobs, spawn) as pool:
            for done in as_completed(pool.submit(cell, p, self.data) for p in plans):
                yield done.result()


def chosen_rates(
    bench: Bench, trial: Plan, arms: list[str], rates: list[float]
) -> dict[str, float]:
    """The learning rate of each arm; ``trial`` says all but arm and rate."""
    tried = {"whole" if arm == "sharded" else arm for arm in arms}
    if len(rates) == 1:
        return dict.fromkeys(tried | set(arms), rates[0])
    plans = [
        trial._replace(arm=arm, learning_rate=rate)
        for arm in ARMS
        if arm in tried
        for rate in rates
    ]
    best: dict[str, Record] = {}
    for record in bench.run(plans):
        arm = record["arm"]
        if arm not in best or record["knn"] > best[arm]["knn"]:
            best[arm] = record
    found = {arm: record["learning_rate"] for arm, record in best.items()}
    return found | ({"sharded": found["whole"]} if "whole" in found else {})


def main(argv: list[str] | None = None) -> None:
    """Parse the arguments; run the cells that are not there yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True)
    add("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--classes", type=int, default=10_000)
    add("--test-images", type=int, default=2_000, help="and as many held out")
    add("--batch-size", type=int, default=256)
    add("--epochs", type=int, default=20)
    add("--learning-rates", type=float, nargs="+", default=[1e-3])
    add("--trial-epochs", type=int, help="default: --epochs")
    add("--jobs", type=int, default=1, help="cells at a time")
    add("--out", type=Path, default=Path("work_dirs/benchmark_many_classes"))
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    data = Data(args.data, args.classes, args.test_images)
    bench = Bench(args.out / "report.json", data, args.jobs)
    epochs = args.trial_epochs or args.epochs
    trial = Plan("", TRIAL_SEED, epochs, args.batch_size, 0.0, trial=True)
    rates = chosen_rates(bench, trial, args.arms, args.learning_rates)
    records = bench.run(
        [
            Plan(arm, seed, args.epochs, args.batch_size, rates[arm], trial=False)
            for seed in args.seeds
            for arm in args.arms
        ]
    )
    (args.out / "report.md").write_text(report(records))
    print(f"\n{report(records)}\nWritten: {args.out / 'report.md'}")


if __name__ == "__main__":
    main()
