"""Make ImageNet-100, a subset of ImageNet-1K, as links to its class folders.

    python tools/make_imagenet100.py data/imagenet data/imagenet100 [--classes FILE]

Both hold train/<wnid> and val/<wnid>. FILE lists one WordNet id a line; the default,
configs/imagenet100_classes.txt, is the list that CMC published and most papers take.
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

from varcon_plugin.commands.messages import fail
from varcon_plugin.commands.places import project_root

CLASSES = project_root() / "configs" / "imagenet100_classes.txt"
SPLITS = ("train", "val")


def main(argv: list[str] | None = None) -> None:
    """Check everything first, then link (or copy) the folders."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("imagenet", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--classes", type=Path, default=CLASSES, metavar="FILE")
    parser.add_argument("--copy", action="store_true", help="copy instead of linking")
    args = parser.parse_args(argv)
    try:
        wnids = read_classes(args.classes)
        made = make_subset(args.imagenet, args.out, wnids, args.copy)
    except (ValueError, OSError) as error:
        fail(error)
    print(f"{args.out}: {len(wnids)} classes, {made} new class folders")


def read_classes(path: Path) -> list[str]:
    """The WordNet ids in ``path``, in its order; lines that start with # are skipped.

    Raises:
        ValueError: a line is no WordNet id, an id comes twice, or there is none.
    """
    lines = [line.strip() for line in path.read_text().splitlines()]
    wnids = [line for line in lines if line and not line.startswith("#")]
    wrong = [line for line in wnids if not re.fullmatch(r"n\d{8}", line)]
    if wrong:
        raise ValueError(f"{path}: expected WordNet ids like n01440764, got {wrong[0]}")
    if len(set(wnids)) < len(wnids) or not wnids:
        raise ValueError(f"{path}: expected different WordNet ids, one a line")
    return wnids


def make_subset(imagenet: Path, out: Path, wnids: list[str], copy: bool) -> int:
    """Link ``out/<split>/<wnid>`` to the folders in ``imagenet``; how many are new.

    Raises:
        ValueError: classes are missing, or ``out`` holds others.
    """
    for split in SPLITS:
        missing = [w for w in wnids if not (imagenet / split / w).is_dir()]
        if missing:
            raise ValueError(
                f"{imagenet / split} lacks {len(missing)} of {len(wnids)} classes, "
                f"such as {missing[0]}; expected {split}/<wnid>/*.JPEG"
            )
        there = out / split
        others = {p.name for p in there.iterdir()} - {*wnids} if there.is_dir() else ()
        if others:
            raise ValueError(
                f"{there} holds other classes, such as {min(others)}: give a new folder"
            )
    made = 0
    for split in SPLITS:
        (out / split).mkdir(parents=True, exist_ok=True)
        for wnid in wnids:
            source, target = imagenet / split / wnid, out / split / wnid
            if target.exists():
                continue
            if copy:
                shutil.copytree(source, target)
            else:
                target.symlink_to(source.resolve(), target_is_directory=True)
            made += 1
    return made
