"""Convert a checkpoint: of the authors, of SupContrast, or ours from either door.

    python tools/convert_checkpoint.py authors.pth ours.pth --to varcon
    python tools/convert_checkpoint.py epoch_200.pth resnet50.pth --to torchvision
    python tools/convert_checkpoint.py epoch_200.pth resnet50.pth --to timm
    python tools/convert_checkpoint.py epoch_200.pth backbone.safetensors --to plain
    python tools/convert_checkpoint.py epoch_200.pth FOLDER --to hub --config CONFIG

Only tensors are unpickled, whatever else the file holds. torchvision, timm, plain and
hub hold the backbone alone; a suffix .safetensors writes safetensors. varcon is what
model.backbone.init_cfg.checkpoint, load_from and tools/evaluate.py take.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from varcon_plugin.checkpoints.backbones import fixed_side
from varcon_plugin.checkpoints.conversion import (
    read_backbone,
    save_weights,
    timm_model,
    torchvision_model,
    varcon_state,
)
from varcon_plugin.checkpoints.hub import write_hub_folder
from varcon_plugin.checkpoints.recorded import Input, input_of, literals
from varcon_plugin.checkpoints.writing import save
from varcon_plugin.commands.messages import fail
from varcon_plugin.commands.noise import quiet_start
from varcon_plugin.commands.places import recipe_path
from varcon_plugin.evaluation.report import summary

TARGETS = ("varcon", "torchvision", "timm", "plain", "hub")


def main(argv: list[str] | None = None) -> None:
    """Read, check against the target's own model, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint", type=Path)
    add("out", type=Path, help="a file; with --to hub a folder")
    add("--to", choices=TARGETS, required=True)
    add("--arch", help="timm's name of the backbone, if the checkpoint does not say it")
    add(
        "--config",
        type=Path,
        help="of the training: image size, mean and std, if it does not say them (hub)",
    )
    add("--report", type=Path, help="report.json of tools/evaluate.py (hub)")
    add("--license", help="of the weights, as the Hub names it (hub)")
    args = parser.parse_args(argv)
    try:
        convert(args)
    except (ValueError, OSError) as error:
        fail(error)
    print(f"{args.out}: {args.to}, from {args.checkpoint}")


def convert(args: argparse.Namespace) -> None:
    """Write ``args.out``."""
    backbone = read_backbone(args.checkpoint, args.arch)
    if args.to == "varcon":
        if args.out.suffix == ".safetensors":
            raise ValueError(f"varcon is a .pth, got {args.out}: --to plain?")
        save({"state_dict": varcon_state(backbone)}, args.out)
    elif args.to == "hub":
        write_hub_folder(
            backbone,
            args.out,
            source=args.checkpoint.name,
            taken=read_input(args.config) if args.config else backbone.taken,
            results=read_results(args.report) if args.report else None,
            license_id=args.license,
        )
    else:
        check = {"torchvision": torchvision_model, "timm": timm_model}.get(args.to)
        side = fixed_side(check(backbone)) if check is not None else None
        if side is not None:
            call = (
                f"timm.create_model({backbone.arch!r}, num_classes=0, img_size={side})"
            )
            print(f"These weights are of images of {side} x {side} pixels: {call}")
        save_weights(backbone.weights, args.out)


def read_results(report: Path) -> str:
    """The numbers of an evaluation, as a table for the model card."""
    return summary(json.loads(report.read_text()))


def read_input(config: Path) -> Input:
    """Image size, mean and standard deviation of a mmpretrain config."""
    with quiet_start():
        from mmengine.config import Config

    cfg = Config.fromfile(recipe_path(str(config)))
    try:
        return input_of(literals(cfg.pretty_text))
    except ValueError as error:
        raise ValueError(f"--config {config}: {error}") from None
