"""Evaluate a frozen encoder: k-NN, linear, class means, few-shot, clustering, ....

    python tools/evaluate.py CONFIG CHECKPOINT --out DIR          # mmpretrain
    python tools/evaluate.py lightly CHECKPOINT --data DATA --out DIR
    python tools/evaluate.py timm:resnet50 WEIGHTS --data DATA --out DIR
    torchrun --nproc-per-node 8 tools/evaluate.py ...             # several GPUs

DATA is a folder with train/CLASS/* and test/CLASS/* (or val), a mmpretrain config, or
digits, cifar10 or cifar100. Writes report.json, report.md, report.csv and pictures to
DIR.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from varcon_plugin.commands.messages import fail
from varcon_plugin.commands.noise import quiet_start
from varcon_plugin.commands.places import recipe_path
from varcon_plugin.distributed import leave_group
from varcon_plugin.evaluation import sources
from varcon_plugin.evaluation.corruption import SEVERITIES
from varcon_plugin.evaluation.images import Encoder, Splits
from varcon_plugin.evaluation.needs import check_folder, fitted, unmet
from varcon_plugin.evaluation.plots import draw_all
from varcon_plugin.evaluation.report import comparison, markdown_table, write_report
from varcon_plugin.evaluation.settings import PROTOCOLS, Settings
from varcon_plugin.evaluation.store import export_features
from varcon_plugin.evaluation.suite import Evaluation
from varcon_plugin.health.report_once import is_first, told_once

TOLD = (ValueError, OSError)  # in one line, by the first process that fails


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = Settings()
    add = parser.add_argument
    add("model", help="a mmpretrain config, lightly, or timm:NAME")
    add("checkpoint", type=Path)
    add("--out", type=Path, required=True, help="folder of the report")
    add(
        "--protocols",
        nargs="+",
        choices=PROTOCOLS,
        default=PROTOCOLS[:5],
        metavar="PROTOCOL",
        help=f"of {', '.join(PROTOCOLS)}; default: the first five",
    )
    add("--data", help="default: that of the config")
    add("--download-dir", type=Path, default="data", help="where CIFAR is, or goes")
    add("--image-size", type=int, help="what lightly and timm models see")
    add("--mean", type=float, nargs=3, help="of R, G, B in [0, 1], for timm models")
    add("--std", type=float, nargs=3, help="as --mean")
    add("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE")
    add("--k", type=int, nargs="+", help="of k-NN")
    add("--temperature", type=float, nargs="+", default=defaults.temperatures)
    add("--shots", type=int, nargs="+")
    add("--draws", type=int, default=defaults.draws, help="of few-shot")
    add("--imagenet-c", type=Path, help="folder of the released images")
    add("--extra-corruptions", action="store_true", help="the four validation ones")
    add("--severities", type=int, nargs="+", choices=SEVERITIES, default=SEVERITIES)
    add("--transfer", nargs="+", default=[], metavar="DATA", help="as --data")
    add("--transfer-metric", choices=("top1", "mean_per_class", "map11"))
    add("--export", nargs="+", choices=("npz", "safetensors"), default=[])
    add("--cache", type=Path, help="folder of the features; default OUT/features")
    add("--seed", type=int, default=0)
    add("--batch-size", type=int, default=256, help="for each process")
    add("--workers", type=int, default=0, help="that read images, for each process")
    add("--device", help="default: a GPU if there is one")
    add("--no-amp", action="store_true", help="float32 on GPUs too")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Evaluate, and write the report."""
    args = parse_args(argv)
    device = start(args.device)
    try:
        with told_once(TOLD):
            report = evaluate(args, device)
    except TOLD as error:
        if is_first():
            fail(error)
        sys.exit(1)
    finally:
        leave_group()
    if report is not None:
        print(markdown_table(*comparison({report["model"]["model"]: report})))
        print(f"\nTables and pictures: {args.out / 'report.md'}")


def evaluate(args: argparse.Namespace, device: str) -> dict[str, Any] | None:
    """Run the protocols; the report, on rank 0."""
    check_folder(args.out)
    encoder = read_encoder(args)
    defaults = Settings()
    settings = Settings(
        ks=tuple(args.k or defaults.ks),
        temperatures=tuple(args.temperature),
        shots=tuple(args.shots or defaults.shots),
        draws=args.draws,
        imagenet_c=args.imagenet_c,
        extra_corruptions=args.extra_corruptions,
        severities=tuple(sorted(args.severities)),
        transfers=tuple(read_data(name, args) for name in args.transfer),
        transfer_metric=args.transfer_metric,
        seed=args.seed,
        batch_size=args.batch_size,
        workers=args.workers,
        device=device,
        amp=not args.no_amp,
    )
    data = read_data(args.data or args.model, args)
    given = [name for name, flag in (("ks", args.k), ("shots", args.shots)) if flag]
    settings, notes = fitted(settings, data, given)
    reasons = {name: unmet(name, settings) for name in args.protocols}
    for name, reason in reasons.items():
        if reason is not None:
            raise ValueError(f"{name}: {reason}")
    if args.model.startswith("timm:") and not (args.mean and args.std):
        notes.append(
            f"{args.checkpoint} does not say what it was trained with; taken is "
            f"{args.model}'s own {encoder.about['normalisation']}: --mean and --std "
            "change it"
        )
    say(notes)
    cache = args.cache or args.out / "features"
    evaluation = Evaluation(encoder, data, settings, cache)
    results, failed = run_all(evaluation, args.protocols)
    if evaluation.train is None or evaluation.test is None:
        return None
    for suffix in args.export:
        for split in ("train", "test"):
            path = args.out / f"features_{split}.{suffix}"
            export_features(getattr(evaluation, split), path, {"split": split})
    report = evaluation.report({k: v for k, v in results.items() if v is not None})
    report["notes"] = notes + [f"{name} failed: {why}" for name, why in failed.items()]
    predicted = evaluation.probe.ranked[:, 0].cpu() if "linear" in results else None
    report["pictures"] = draw_all(
        report["protocols"], evaluation.test, predicted, args.out, seed=args.seed
    )
    write_report(report, args.out)
    if failed:
        done = (
            f"the report of {', '.join(results)} is in {args.out}; " if results else ""
        )
        raise ValueError(done + "; ".join(report["notes"][len(notes) :]))
    return report


def run_all(
    evaluation: Evaluation, protocols: Sequence[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Results by protocol, and why the others failed."""
    results: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for name in protocols:
        try:
            results[name] = run(evaluation, name)
        except ValueError as error:
            if "train" not in vars(evaluation) or "test" not in vars(evaluation):
                raise  # nothing can be computed without features
            failed[name] = str(error)
    return results, failed


def say(notes: Sequence[str]) -> None:
    """Print notes, once."""
    if int(os.environ.get("RANK", 0)) == 0:
        for note in notes:
            print(note, file=sys.stderr)


def run(evaluation: Evaluation, protocol: str) -> dict[str, Any] | None:
    """Run a protocol, and say so: on a terminal, progress bars follow."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"{protocol} ...", file=sys.stderr)
    return evaluation.run(protocol)


def read_encoder(args: argparse.Namespace) -> Encoder:
    """The model that the command line names."""
    pixels = {"mean": args.mean, "std": args.std, "image_size": args.image_size}
    if args.model.startswith("timm:"):
        name = args.model.removeprefix("timm:")
        return sources.timm_encoder(name, args.checkpoint, **pixels)
    if args.mean or args.std:
        raise ValueError("--mean and --std: only timm models need to be told")
    if args.model == "lightly":
        from varcon_plugin.lightly.evaluation import load_encoder as load_lightly

        return load_lightly(args.checkpoint, image_size=args.image_size)
    with quiet_start():
        from varcon_plugin.mmpretrain.evaluation import load_encoder

    return load_encoder(recipe_path(args.model), args.checkpoint, options(args))


def read_data(name: str, args: argparse.Namespace) -> Splits:
    """The dataset that ``name`` stands for."""
    if name == "digits":
        return sources.digits()
    if name in ("cifar10", "cifar100"):
        return sources.cifar(name, args.download_dir)
    if name.endswith(".py") or (name == args.model and of_mmpretrain(name)):
        with quiet_start():
            from varcon_plugin.mmpretrain.evaluation import load_splits

        return load_splits(
            recipe_path(name), options(args) if name == args.model else None
        )
    if name == args.model:
        raise ValueError(
            f"--data is needed with {name}: a folder, a config, digits, cifar10 or "
            "cifar100"
        )
    if not Path(name).is_dir():
        raise ValueError(
            'data must be "digits", "cifar10", "cifar100", a config or a folder with '
            f"the subfolders train and test (or val): image folder not found: {name}"
        )
    return sources.folder(Path(name))


def of_mmpretrain(model: str) -> bool:
    """Whether ``model`` is a config, and not what has none."""
    return model != "lightly" and not model.startswith("timm:")


def options(args: argparse.Namespace) -> dict[str, Any]:
    """``--cfg-options`` as mmengine reads them."""
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg-options", nargs="+", action=DictAction)
    if not args.cfg_options:
        return {}
    return dict(parser.parse_args(["--cfg-options", *args.cfg_options]).cfg_options)


def start(device: str | None) -> str:
    """Join the processes of torchrun, if it started this one; the device to use."""
    gpu = device is None and torch.cuda.is_available()
    chosen = "cuda" if gpu else device or "cpu"
    if "LOCAL_RANK" not in os.environ:
        return chosen
    on_gpu = chosen.startswith("cuda")
    if on_gpu:
        chosen = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(chosen)
    # rank 0 may compute for long while the others wait for the next images
    timeout = timedelta(days=1)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timeout)
    return chosen
