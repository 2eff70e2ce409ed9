r"""What do really many classes teach, and what do their references cost in accuracy?

    python tools/benchmarks/benchmark_many_classes.py --data CIFAR10 --seeds 0 1 2

``--data`` holds ``train/CLASS/*.png`` and ``test/CLASS/*.png``. Every training image
is a class of its own, of which a batch holds two views; k-NN then says how well the
true classes, which no run has seen, can be told apart. Four sources of
references see the same images, views and initial weights for equally many steps: the
bank whole, the bank on two processes with half of each batch each, the bank with
``num_negatives`` a tenth of the classes, and the means of the batch alone. Nothing in
the network normalises over the batch, so two processes compute what one does. Writes
report.md and report.json to work_dirs/benchmark_many_classes; cells found in the latter
are not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
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
LEARNING_RATE, WEIGHT_DECAY = 3e-4, 1e-4
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
    train: Split
    test: Split


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


def load(folder: Path, limit: int) -> Split:
    """The first ``limit`` images of a folder of class folders, evenly over them."""
    from PIL import Image

    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    each = -(-limit // len(classes))
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted(name.iterdir())[:each]
    ][:limit]
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


def train(plan: Plan) -> Record:
    """Train one cell on the ranks of the process group, and judge it."""
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if dist.is_initialized() else 0
    torch.manual_seed(plan.seed)
    encoder = Encoder()
    model = encoder if ranks == 1 else DistributedDataParallel(encoder)
    size = len(plan.train.images)
    criterion = references(plan.arm, size)
    steps = plan.epochs * (size // plan.batch_size)
    optimizer = torch.optim.AdamW(
        encoder.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY
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
            images = plan.train.images[chosen]
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
        "arm": plan.arm,
        "seed": plan.seed,
        "epochs": plan.epochs,
        "classes": size,
        "batch_size": plan.batch_size,
        "loss": float(mean) / ranks,
        "knn": judge(encoder, plan),
        "seconds": time.perf_counter() - start,
    }


@torch.no_grad()
def judge(encoder: Encoder, plan: Plan) -> float:
    """k-NN top-1 (%) of the true classes, by the features of the backbone."""
    plain = BatchAugment(flip_prob=0, jitter_prob=0, grayscale_prob=0, blur_prob=0)

    def features(images: Tensor) -> Tensor:
        pieces = []
        for piece in torch.split(images, 500):
            small = F.interpolate(piece.float(), size=PIXELS, mode="area")
            pieces.append(encoder.backbone(plain([small.round().byte()])[0]))
        return torch.cat(pieces)

    found = knn_accuracy(
        features(plan.train.images),
        plan.train.labels,
        features(plan.test.images),
        plan.test.labels,
        ks=[NEIGHBORS],
        temperatures=[KNN_TEMPERATURE],
    )
    return float(found[NEIGHBORS, KNN_TEMPERATURE].top1)


def on_a_rank(rank: int, store: str, plan: Plan, out: str) -> None:
    """`train` in one of two processes."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    record = train(plan)
    if rank == 0:
        Path(out).write_text(json.dumps(record))
    leave_group()


def cell(plan: Plan) -> Record:
    """`train`, in as many processes as the arm has."""
    if plan.arm != "sharded":
        return train(plan)
    with tempfile.TemporaryDirectory() as folder:
        store, out = str(Path(folder) / "store"), Path(folder) / "record"
        spawn: Any = multiprocessing.spawn  # type: ignore[attr-defined]
        spawn(on_a_rank, (store, plan, str(out)), nprocs=2)
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
        row("references", "k-NN", "each seed", "loss, last epoch"),
        row("---", *["---:"] * 3),
    ]
    for arm, title in ARMS.items():
        own = sorted(
            (r for r in records if r["arm"] == arm), key=lambda record: record["seed"]
        )
        if own:
            each = ", ".join(f"{r['knn']:.2f}" for r in own)
            loss = ", ".join(f"{r['loss']:.4f}" for r in own)
            lines.append(row(title, interval([r["knn"] for r in own]), each, loss))
    return "\n".join(lines) + "\n"


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
    add("--test-images", type=int, default=2_000)
    add("--batch-size", type=int, default=256)
    add("--epochs", type=int, default=8)
    add("--out", type=Path, default=Path("work_dirs/benchmark_many_classes"))
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "report.json"
    records: list[Record] = json.loads(file.read_text()) if file.exists() else []
    settings = {
        "epochs": args.epochs,
        "classes": args.classes,
        "batch_size": args.batch_size,
    }
    done = {(r["arm"], r["seed"]) for r in records if settings.items() <= r.items()}
    train_split = load(args.data / "train", args.classes)
    test_split = load(args.data / "test", args.test_images)
    for seed in args.seeds:
        for arm in args.arms:
            if (arm, seed) in done:
                continue
            record = cell(
                Plan(arm, seed, args.epochs, args.batch_size, train_split, test_split)
            )
            records.append(record)
            file.write_text(json.dumps(records, indent=1) + "\n")
            print(
                f"{ARMS[arm]}, seed {seed}: k-NN {record['knn']:.2f} %, "
                f"{record['seconds']:.0f} s",
                flush=True,
            )
    current = [r for r in records if settings.items() <= r.items()]
    (args.out / "report.md").write_text(report(current))
    print(f"\n{report(current)}\nWritten: {args.out / 'report.md'}")


if __name__ == "__main__":
    main()
