r"""Train VarCon with lightly, then report k-NN and linear accuracy.

    python tools/train_lightly.py                        # digits, on the CPU
    python tools/train_lightly.py --data cifar100 --epochs 200 --devices 2
    python tools/train_lightly.py --data /datasets/imagenet --backbone resnet50 \
        --epochs 100 --devices 8 --precision bf16-mixed

--data is a name or a folder with train/CLASS/* and val/CLASS/* (or test). Logs (CSV and
TensorBoard), checkpoints and results.json go to --output-dir. For several nodes give
--num-nodes and start the same command on each, under srun or torchrun.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only
from torch.utils.data import DataLoader, Dataset

from varcon_plugin.checkpoints.newest import newest
from varcon_plugin.checkpoints.ownership import (
    FolderInUseError,
    end_with_parent,
    owned,
)
from varcon_plugin.checkpoints.stopping import REQUEUE, Interrupted, shield_worker
from varcon_plugin.checkpoints.writing import STORAGE_ERRORS, write_atomically
from varcon_plugin.commands.messages import fail
from varcon_plugin.distributed import leave_group
from varcon_plugin.evaluation.knn import knn_accuracy
from varcon_plugin.evaluation.linear import linear_probe
from varcon_plugin.health.finite import LossNotFiniteError
from varcon_plugin.lightly import (
    FiniteLossCallback,
    ShardedBankStrategy,
    VarCon,
    VarConDiagnosticsCallback,
    VarConSSL,
)
from varcon_plugin.lightly.data import Datasets, create_datasets
from varcon_plugin.lightly.durability import DurableCheckpointIO, StopAndGoOn
from varcon_plugin.lightly.evaluation import dataset_features
from varcon_plugin.training.damaged import CorruptImageError
from varcon_plugin.training.resumable import ResumableSampler, SeededDataset

QUARTER_WIDTH = {"channels": [16, 32, 64, 128]}
# data: backbone, its arguments, stem, epochs
DEFAULTS: dict[str, tuple[str, dict[str, Any] | None, str, int]] = {
    "digits": ("resnet18", QUARTER_WIDTH, "imagenet", 20),
    "cifar10": ("resnet18", None, "cifar", 200),
    "cifar100": ("resnet18", None, "cifar", 200),
    "folder": ("resnet50", None, "imagenet", 100),
}


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", default="digits", help="digits, cifar10, cifar100 or a folder")
    add("--download-dir", type=Path, default="data", help="where CIFAR is, or goes")
    add("--image-size", type=int, default=224, help="of the images of a folder")
    add("--backbone", help="a timm model name; default by --data")
    add("--backbone-kwargs", type=json.loads, help='such as {"img_size": 32}')
    add("--stem", choices=("imagenet", "cifar"), help="of a ResNet; cifar for 32 px")
    add("--epochs", type=int, help="default by --data")
    add("--warmup-epochs", type=float, help="default: 10, at most a tenth of the run")
    add("--batch-size-per-device", type=int, default=128)
    add("--lr", type=float, default=0.075, help="for a global batch of one; see VarCon")
    add("--weight-decay", type=float, default=1e-6)
    add("--temperature", type=float, default=0.1)
    add("--epsilon", type=float, default=0.02)
    add("--leave-one-out", action="store_true")
    add("--without-labels", action="store_true", help="each image its own class")
    add("--latent-classes", type=int, help="above that, told by a moving average")
    add("--centroid-momentum", type=float, help="of a bank of class references")
    add("--num-negatives", type=int, help="classes of the bank to draw; default: all")
    add("--shard-centroids", action="store_true", help="the bank over the devices")
    add("--ema-decay", type=float, help="of a slow encoder for class references")
    add("--accumulate", type=int, default=1, help="batches in a step")
    add("--micro-batch-size", type=int, help="views that the model sees at a time")
    add("--knn-k", type=int, default=200)
    add("--knn-t", type=float, default=0.1)
    add("--val-interval", type=int, default=1, help="epochs between validations")
    add("--precision", default="32", help="32, bf16-mixed, bf16-true or 16-mixed")
    add("--accelerator", default="auto", help="auto, cpu or gpu")
    add("--devices", default="auto", help="processes on a node; auto: all GPUs, or one")
    add("--num-nodes", type=int, default=1)
    add("--num-workers", type=int, default=0, help="loader processes for each device")
    add("--seed", type=int, default=0)
    add("--diagnostics", action="store_true", help="see docs/diagnostics.md")
    add("--output-dir", type=Path, default="work_dirs/lightly")
    add("--resume", action="store_true", help="go on from the last checkpoint")
    args = parser.parse_args(argv)
    backbone, kwargs, stem, epochs = DEFAULTS.get(args.data, DEFAULTS["folder"])
    if args.backbone is None:
        args.backbone = backbone
        args.backbone_kwargs = args.backbone_kwargs or kwargs
    if args.stem is None:
        args.stem = stem
    if args.epochs is None:
        args.epochs = epochs
    if args.warmup_epochs is None:
        args.warmup_epochs = min(10, args.epochs / 10)
    return args


def main(argv: list[str] | None = None) -> None:
    """Train and evaluate, then leave the process group."""
    if "LOCAL_RANK" in os.environ:  # one of several processes
        end_with_parent()
    interrupted = False
    try:
        with ExitStack() as held:
            run(argv, held)
    except Interrupted:
        interrupted = True
    except OSError as error:
        if error.errno not in STORAGE_ERRORS:
            raise
        fail(error.strerror)
    leave_group()
    if interrupted:
        # Lightning kills the first process when another that it started fails.
        started_by_lightning = os.environ.get("LOCAL_RANK", "0") != "0" and (
            "TORCHELASTIC_RUN_ID" not in os.environ and "SLURM_PROCID" not in os.environ
        )
        sys.exit(0 if started_by_lightning else REQUEUE)


def run(argv: list[str] | None, held: ExitStack) -> None:
    """Train and evaluate; nothing holds the model afterwards."""
    args = parse_args(argv)
    try:
        take_output_dir(args.output_dir, held)
        resume_from = find_checkpoint(args.output_dir, args.resume)
        seed_everything(args.seed, workers=True, verbose=False)
        datasets = create_datasets(
            args.data, download_dir=args.download_dir, image_size=args.image_size
        )
        fit_knn_k(args, datasets)
        model = create_model(args, datasets)
        sampler = ResumableSampler(len(datasets.bank_targets), args.seed)
        trainer = create_trainer(args, sampler)
        check_batch_size(args, datasets, trainer.world_size)
    except (ValueError, FolderInUseError) as error:
        fail(error)

    train, bank, val = create_loaders(args, datasets, sampler)
    try:
        trainer.fit(model, train, [bank, val], ckpt_path=resume_from, weights_only=True)
    except LossNotFiniteError as error:
        fail(error)
    if trainer.received_sigterm:  # before the first step or after the last
        sys.exit(128 + signal.SIGTERM)
    try:
        results = evaluate(model, datasets, args, trainer.strategy.root_device)
    except CorruptImageError as error:
        fail(f"trained, but not evaluated: image {error}")
    if results is not None:
        text = json.dumps(results, indent=2).encode()
        write_atomically(args.output_dir / "results.json", lambda f: f.write(text))
        for name, value in results.items():
            print(f"{name:12} {value:6.2f} %")


@rank_zero_only
def take_output_dir(folder: Path, held: ExitStack) -> None:
    """Own the folder until ``held`` is closed."""
    try:
        held.enter_context(owned(folder))
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise ValueError(f"--output-dir {folder} cannot be written: {reason}") from None


def find_checkpoint(folder: Path, resume: bool) -> Path | None:
    """What ``--resume`` goes on from, which is told; None is the beginning.

    Raises:
        ValueError: there is a run but no ``resume``, or nothing whole to resume from.
    """
    files = sorted((folder / "checkpoints").glob("*.ckpt"))
    if not resume:
        if files:
            raise ValueError(
                f"--output-dir {folder} holds a run already: add --resume to go on "
                "with it, or name another folder"
            )
        return None
    chosen = newest(files)
    if chosen.path is not None:
        rank_zero_info(f"Resuming from {chosen}.")
    elif chosen.damaged:
        raise ValueError(f"--resume: {folder} holds {chosen}")
    else:
        rank_zero_info(f"Nothing to resume in {folder}: starting from the beginning.")
    return chosen.path


def fit_knn_k(args: argparse.Namespace, datasets: Datasets) -> None:
    """No more neighbours than there are training images; a change is told."""
    images = len(datasets.bank_targets)
    if args.knn_k > images:
        rank_zero_info(
            f"--knn-k {args.knn_k} is more than the {images} training images: "
            f"--knn-k {images} instead"
        )
        args.knn_k = images


def create_model(args: argparse.Namespace, datasets: Datasets) -> VarCon:
    """The module that the command line describes."""
    bank = args.centroid_momentum is not None
    special: dict[str, Any] = {
        "leave_one_out": args.leave_one_out,
        "centroid_momentum": args.centroid_momentum,
        "num_negatives": args.num_negatives,
        "accumulation_steps": args.accumulate if bank else 1,
        "shard_centroids": args.shard_centroids,
        "ema_decay": args.ema_decay,
    }
    if args.latent_classes is not None and not args.without_labels:
        raise ValueError("--latent-classes goes with --without-labels")
    if args.without_labels:
        teacher = None if args.latent_classes is None else 0.99
        special |= {"latent_classes": args.latent_classes, "teacher_momentum": teacher}
    return (VarConSSL if args.without_labels else VarCon)(
        args.batch_size_per_device,
        datasets.num_classes,
        args.knn_k,
        args.knn_t,
        backbone=args.backbone,
        backbone_kwargs=args.backbone_kwargs,
        stem=args.stem,
        image_size=datasets.image_size,
        temperature=args.temperature,
        epsilon=args.epsilon,
        **special,
        micro_batch_size=args.micro_batch_size,
        lr=args.lr,
        weight_decay=args.weight_decay,
        warmup_epochs=args.warmup_epochs,
    )


def create_trainer(args: argparse.Namespace, sampler: ResumableSampler) -> Trainer:
    """Lightning's Trainer, with logs and checkpoints below ``--output-dir``."""
    out = args.output_dir
    callbacks: list[Callback] = [
        ModelCheckpoint(
            out / "checkpoints",
            "{epoch:04d}",
            save_last="link",
            save_on_train_epoch_end=True,  # also of epochs without validation
        ),
        LearningRateMonitor(),
        FiniteLossCallback(),
        StopAndGoOn(
            sampler, args.batch_size_per_device, out / "checkpoints", args.seed
        ),
    ]
    if args.diagnostics:
        directory = out / "diagnostics"
        callbacks.append(VarConDiagnosticsCallback(directory=directory))
    return Trainer(
        max_epochs=args.epochs,
        accelerator=args.accelerator,
        devices=int(args.devices) if args.devices.isdigit() else args.devices,
        num_nodes=args.num_nodes,
        precision=args.precision,
        accumulate_grad_batches=args.accumulate,
        strategy=ShardedBankStrategy() if args.shard_centroids else "auto",
        check_val_every_n_epoch=args.val_interval,
        log_every_n_steps=5,
        # SyncBatchNorm does not exist on the CPU.
        sync_batchnorm=args.accelerator != "cpu" and torch.cuda.is_available(),
        logger=[CSVLogger(out, name="csv"), TensorBoardLogger(out, name="tensorboard")],
        callbacks=callbacks,
        plugins=[DurableCheckpointIO()],
    )


def check_batch_size(
    args: argparse.Namespace, datasets: Datasets, world_size: int
) -> None:
    """Raise ValueError if an epoch would have no batch."""
    images = args.batch_size_per_device * world_size
    if images > len(datasets.bank_targets):
        raise ValueError(
            f"--batch-size-per-device {args.batch_size_per_device} on {world_size} "
            f"devices is more than the {len(datasets.bank_targets)} training images"
        )


def create_loaders(
    args: argparse.Namespace, datasets: Datasets, sampler: ResumableSampler
) -> list[DataLoader[Any]]:
    """Loaders of the training images, the k-NN bank and the validation images."""

    def loader(
        dataset: Dataset[Any], sampler: ResumableSampler | None = None
    ) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_size=args.batch_size_per_device,
            sampler=sampler,
            drop_last=sampler is not None,
            worker_init_fn=shield_worker(None),
            num_workers=args.num_workers,
            persistent_workers=args.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    train = loader(SeededDataset(datasets.train), sampler)
    return [train, loader(datasets.bank), loader(datasets.val)]


def evaluate(
    model: VarCon, datasets: Datasets, args: argparse.Namespace, device: torch.device
) -> dict[str, float] | None:
    """k-NN and linear accuracy in percent, of all ranks' features; None but on rank 0.

    Features are those of the backbone in the last epoch, the test split is looked at
    once.
    """
    bank, val = (
        dataset_features(
            model.float(),
            dataset,
            batch_size=args.batch_size_per_device,
            workers=args.num_workers,
            device=device,
            amp=args.precision not in ("32", "32-true"),
            title=title,
        )
        for dataset, title in ((datasets.bank, "train"), (datasets.val, "val"))
    )
    if bank is None or val is None:
        return None
    targets = (torch.tensor(x) for x in (datasets.bank_targets, datasets.val_targets))
    bank_labels, val_labels = (labels.to(device) for labels in targets)
    split = bank.to(device), bank_labels, val.to(device), val_labels
    k, t = args.knn_k, args.knn_t
    knn = knn_accuracy(*split, ks=[k], temperatures=[t])[k, t]
    linear = linear_probe(*split, seed=args.seed)
    return {
        "knn_top1": knn.top1,
        "knn_top5": knn.top5,
        "linear_top1": linear.top1,
        "linear_top5": linear.top5,
    }
