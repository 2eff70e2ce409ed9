"""Train VarCon on handwritten digits through mmpretrain, then judge what it learned.

    python tools/quickstart.py

Two processes, on two GPUs or on the CPU; one on a single GPU. Writes
work_dirs/quickstart: the checkpoints and logs, metrics.json and embeddings.png.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import normalize

from varcon_plugin.checkpoints.reading import load_state_dict
from varcon_plugin.commands.places import project_root, recipe_path
from varcon_plugin.evaluation.features import extract_features
from varcon_plugin.evaluation.images import ImageDataset, Images
from varcon_plugin.evaluation.knn import knn_accuracy
from varcon_plugin.evaluation.linear import linear_probe
from varcon_plugin.evaluation.sources import digits
from varcon_plugin.mmpretrain.evaluation import MMEncoder, MMTransform

CONFIG = "varcon_r18_digits"
OUT = Path("work_dirs/quickstart")
K, TEMPERATURE = 20, 0.07  # DINO's k-NN evaluation
MUST_REACH = 0.95
MOST_PROCESSES = 2  # 1,347 images: more processes would have few batches, or none

Split = tuple[Tensor, Tensor]  # features (N, D), labels (N,)


def train(processes: int, seed: int, out: Path) -> Path:
    """Run the recipe on ``processes`` processes; returns its last checkpoint."""
    script = project_root() / "tools" / "dist_train.sh"
    command = ["bash", str(script), str(recipe_path(CONFIG)), str(processes)]
    flags = ["--resume", "--cfg-options", f"randomness.seed={seed}"]
    subprocess.run([*command, "--work-dir", str(out), *flags], check=True)
    return out / Path((out / "last_checkpoint").read_text().strip()).name


def features(model: nn.Module, images: Images) -> Split:
    """Pooled backbone features of ``images``."""
    pipeline: list[dict[str, Any]] = [
        {"type": "Resize", "scale": 16},
        {"type": "PackInputs"},
    ]
    dataset = ImageDataset(images.items, MMTransform(pipeline, bgr=False))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    vectors = extract_features(MMEncoder(model, bgr=False), dataset, device=device)
    assert vectors is not None  # this is the only process
    return vectors, images.labels


def judge(bank: Split, held_out: Split) -> dict[str, float]:
    """k-NN and linear top-1 of held-out images, in [0, 1]."""
    knn = knn_accuracy(*bank, *held_out, ks=[K], temperatures=[TEMPERATURE])
    return {
        "knn_top1": knn[K, TEMPERATURE].top1 / 100,
        "linear_top1": linear_probe(*bank, *held_out).top1 / 100,
    }


def draw(held_out: dict[str, Split], path: Path) -> None:
    """t-SNE of each encoder's features of the held-out digits, side by side."""
    mpl.use("agg")
    from matplotlib import pyplot as plt
    from sklearn.manifold import TSNE

    figure, axes = plt.subplots(1, len(held_out), figsize=(12, 6), layout="constrained")
    for axis, (title, (vectors, labels)) in zip(axes, held_out.items(), strict=True):
        points = TSNE(max_iter=500, random_state=0).fit_transform(
            normalize(vectors).numpy()
        )
        axis.scatter(*points.T, s=0)  # sets the limits
        for (x, y), label in zip(points, labels.tolist(), strict=True):
            colour = plt.get_cmap("tab10")(label)
            axis.text(x, y, str(label), color=colour, ha="center", va="center", size=9)
        axis.set(title=title, xticks=[], yticks=[])
    figure.suptitle("Backbone features of the 450 held-out digits (t-SNE, cosine)")
    figure.savefig(path, dpi=100)


def main() -> None:
    """Train, evaluate, and say what to look at."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of the training; other than 0 it goes to work_dirs/quickstart_seedN",
    )
    seed: int = parser.parse_args().seed
    out = OUT.with_name(f"{OUT.name}_seed{seed}") if seed else OUT
    console = Console()
    gpus = min(torch.cuda.device_count(), MOST_PROCESSES)
    where = f"{gpus} GPUs" if gpus else "the CPU (two processes)"
    console.rule(f"1/2 Training {CONFIG} on {where}, about a minute")
    checkpoint = train(gpus or MOST_PROCESSES, seed, out)

    console.rule("2/2 Evaluating the frozen backbone on held-out digits")
    cfg = Config.fromfile(recipe_path(CONFIG))
    init_default_scope("mmpretrain")
    MMLogger.get_instance("quickstart", log_level="WARNING")
    torch.manual_seed(0)
    model = MODELS.build({**cfg.model, "data_preprocessor": cfg.data_preprocessor})
    model.init_weights()
    data, results, held_out = digits(), {}, {}
    for name in ("untrained", "VarCon"):
        if name == "VarCon":
            model.load_state_dict(load_state_dict(checkpoint))
        held_out[name] = features(model, data.test)
        results[name] = judge(features(model, data.train), held_out[name])

    table = Table("backbone", f"k-NN top-1 (k = {K})", "linear top-1")
    for name, result in results.items():
        table.add_row(name, *(f"{100 * value:.1f} %" for value in result.values()))
    console.print(table)
    draw(held_out, out / "embeddings.png")
    record = {
        **results["VarCon"],
        "untrained": results["untrained"],
        "config": CONFIG,
        "checkpoint": str(checkpoint),
        "command": f"python tools/quickstart.py --seed {seed}",
        "machine": f"{platform.machine()}, {where}",
        "torch": torch.__version__,
    }
    (out / "metrics.json").write_text(json.dumps(record, indent=2) + "\n")
    console.print("Look at:")
    for path, what in (
        (out / "metrics.json", "these numbers"),
        (out / "embeddings.png", "the held-out digits as the backbone sees them"),
        (checkpoint, "the trained model"),
    ):
        console.print(f"  {path}  {what}", highlight=False, soft_wrap=True)
    if results["VarCon"]["knn_top1"] < MUST_REACH:
        sys.exit(f"k-NN top-1 is below {MUST_REACH}: training did not work here")
