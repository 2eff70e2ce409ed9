"""One run of a recipe, or of a rival at its network and images, timed by its parts.

What `varcon benchmark train` starts in a process of its own, for each round.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from varcon_plugin.mmpretrain.launch import prepare

__all__ = ["PARTS", "main"]

PARTS = (
    *("waiting for data", "copying", "augmentation", "network", "loss"),
    *("backward", "optimiser", "logging, rest"),
)
DATA, COPY, AUGMENT, NETWORK, LOSS, BACKWARD, OPTIMISER, REST = PARTS
SIMCLR = "mmpretrain::simclr/simclr_resnet50_16xb256-coslr-200e_in1k.py"


class EnoughError(Exception):
    """The run has taken its steps."""


class Clock:
    """Seconds in each part of a training step; a part inside another is its own.

    Args:
        synchronise: wait for the GPU at each border, so that its work counts where it
            was asked for; slows the whole down.
    """

    def __init__(self, synchronise: bool) -> None:
        self.synchronise = synchronise
        self.seconds: dict[str, float] = defaultdict(float)
        self.parts = [REST]
        self.last = self.start = time.perf_counter()

    def restart(self) -> None:
        """Forget what was measured."""
        self.mark()
        self.seconds.clear()
        self.start = self.last

    def mark(self) -> None:
        """Charge the time since the last mark to the innermost part."""
        if self.synchronise:
            torch.accelerator.synchronize()
        now = time.perf_counter()
        self.seconds[self.parts[-1]] += now - self.last
        self.last = now

    def watch(self, owner: Any, name: str, part: str) -> None:
        """Charge the time in ``owner.name(...)`` to ``part``."""
        function: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.mark()
            self.parts.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                self.mark()
                self.parts.pop()

        setattr(owner, name, timed)


class WatchedLoader:
    """A data loader; the time that it is waited for is charged to ``DATA``."""

    def __init__(self, loader: Any, clock: Clock) -> None:
        self.loader, self.clock = loader, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["loader"], name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        self.fetch: Callable[..., Any] = lambda: next(batches, self)
        self.clock.watch(self, "fetch", DATA)
        while (batch := self.fetch()) is not self:
            yield batch


class TimingHook(Hook):  # type: ignore[misc]  # untyped upstream
    """Times an mmengine run after ``warm_up`` steps and ends it after ``steps``."""

    priority = "LOWEST"

    def __init__(self, clock: Clock, steps: int, warm_up: int) -> None:
        self.clock, self.steps, self.warm_up = clock, steps, warm_up

    def before_train(self, runner: Runner) -> None:
        """Watch the parts."""
        model, wrapper = runner.model, runner.optim_wrapper
        runner.train_loop.dataloader = WatchedLoader(
            runner.train_loop.dataloader, self.clock
        )
        for owner, name, part in (
            (model.data_preprocessor, "forward", AUGMENT),
            (model.data_preprocessor, "cast_data", COPY),
            (model.backbone, "forward", NETWORK),
            (model.neck, "forward", NETWORK),
            (model.head, "loss", LOSS),
            (wrapper, "backward", BACKWARD),
            (wrapper, "step", OPTIMISER),
            (wrapper, "zero_grad", OPTIMISER),
        ):
            self.clock.watch(owner, name, part)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Start, or end."""
        if runner.iter + 1 == self.warm_up:
            self.clock.restart()
        if runner.iter + 1 == self.warm_up + self.steps:
            self.clock.mark()
            raise EnoughError


def crop_size(cfg: Any) -> int:
    """Side of the crops that a recipe trains on."""
    found: list[Any] = [cfg.train_dataloader.dataset.pipeline]
    while found:
        part = found.pop()
        if isinstance(part, list):
            found += part
        elif isinstance(part, dict):
            if part.get("type") in ("TwoCrops", "RandomResizedCrop"):
                return int(part.get("scale", 224))
            found += part.values()
    raise SystemExit(f"{cfg.filename} has neither TwoCrops nor RandomResizedCrop")


def set_crop_size(part: Any, size: int) -> None:
    """The same in a pipeline of mmpretrain's."""
    if isinstance(part, list):
        for step in part:
            set_crop_size(step, size)
    elif isinstance(part, dict):
        if part.get("type") == "RandomResizedCrop":
            part["scale"] = size
        for value in part.values():
            set_crop_size(value, size)


def simclr(cfg: Any) -> Any:
    """Mmpretrain's SimCLR recipe, with the network, images and batch of ``cfg``."""
    base = Path(tempfile.mkdtemp()) / "simclr.py"
    base.write_text(f"_base_ = [{SIMCLR!r}]\n")
    rival = Config.fromfile(base)
    rival.model.backbone, rival.model.neck = cfg.model.backbone, cfg.model.neck
    pipeline = rival.train_dataloader.dataset.pipeline
    set_crop_size(pipeline, crop_size(cfg))
    rival.train_dataloader.update(
        batch_size=cfg.train_dataloader.batch_size,
        num_workers=workers(cfg),
        pin_memory=torch.cuda.is_available(),
    )
    # the inherited one carries a _scope_ key that mmengine hands to the function
    rival.train_dataloader.collate_fn = {"type": "default_collate"}
    dataset = cfg.train_dataloader.dataset
    rival.train_dataloader.dataset = Config(dict(dataset))._cfg_dict
    rival.train_dataloader.dataset.pipeline = pipeline
    return rival


def plain(cfg: Any) -> Any:
    """The recipe in float32 and contiguous, augmented by mmpretrain in the workers."""
    augment = cfg.data_preprocessor
    jitter = {
        "type": "ColorJitter",
        **{name: augment[name] for name in ("brightness", "contrast")},
        **{name: augment[name] for name in ("saturation", "hue")},
    }
    crops = {**cfg.train_dataloader.dataset.pipeline[0], "type": "RandomResizedCrop"}
    grey = {"type": "RandomGrayscale", "prob": 0.2, "keep_channels": True}
    views = [
        crops,
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "RandomApply", "transforms": [jitter], "prob": 0.8},
        {**grey, "channel_weights": (0.114, 0.587, 0.2989)},  # read as BGR
    ]
    cfg.train_dataloader.dataset.pipeline = [
        {"type": "LoadImageFromFile"},
        {"type": "MultiView", "num_views": 2, "transforms": [views]},
        {"type": "PackInputs"},
    ]
    cfg.data_preprocessor = {
        "type": "SelfSupDataPreprocessor",
        **{name: augment[name] for name in ("mean", "std", "to_rgb")},
    }
    cfg.optim_wrapper.type = "OptimWrapper"
    cfg.model.channels_last = False
    return cfg


def workers(cfg: Any) -> int:
    """Data workers of a rival, which does more in them: at least one for each core."""
    own: int = cfg.train_dataloader.num_workers
    return max(own, os.cpu_count() or 1)


def run_mmengine(cfg: Any, clock: Clock, steps: int, warm_up: int) -> None:
    """Train for so many steps, by mmengine's runner with all its hooks."""
    batch = cfg.train_dataloader.batch_size
    dataset = cfg.train_dataloader.dataset
    images = len(list((Path(dataset.data_root) / "train").glob("*/*")))
    times = math.ceil((steps + warm_up) * batch / max(1, images))
    cfg.train_dataloader.dataset = {
        "type": "RepeatDataset",
        "times": times,
        "dataset": dataset,
    }
    cfg.work_dir, cfg.launcher = tempfile.mkdtemp(), "none"
    cfg.default_hooks.checkpoint = None
    prepare(cfg, "train")
    runner = Runner.from_cfg(cfg)
    runner.register_hook(TimingHook(clock, steps, warm_up))
    try:
        runner.train()
    except EnoughError:
        return
    raise SystemExit(f"{cfg.filename}: the run ended before {steps} steps")


def run_lightly(cfg: Any, clock: Clock, steps: int, warm_up: int) -> None:
    """Lightly's SimCLR with its transform, at the network and images of ``cfg``."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform
    from lightly.utils.lars import LARS
    from pytorch_lightning import Callback, LightningModule, Trainer
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    init_default_scope("mmpretrain")
    size, batch = crop_size(cfg), cfg.train_dataloader.batch_size

    class SimCLR(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.backbone: nn.Module = MODELS.build(cfg.model.backbone)
            with torch.no_grad():
                dim = self.backbone(torch.zeros(2, 3, size, size))[-1].shape[1]
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.projection_head = SimCLRProjectionHead(dim, dim, 128)
            self.criterion = NTXentLoss(temperature=0.1)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            (x0, x1), _ = batch
            features = self.pool(self.backbone(torch.cat([x0, x1]))[-1]).flatten(1)
            z0, z1 = self.projection_head(features).chunk(2)
            loss: Tensor = self.criterion(z0, z1)
            self.log("train_loss", loss, prog_bar=False, batch_size=len(x0))
            return loss

        def configure_optimizers(self) -> Any:
            return LARS(self.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-6)

    class Timing(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            for owner, name, part in (
                (pl_module.backbone, "forward", NETWORK),
                (pl_module.projection_head, "forward", NETWORK),
                (pl_module.criterion, "forward", LOSS),
                (trainer.strategy, "batch_to_device", COPY),
                (trainer.strategy, "backward", BACKWARD),
                (trainer.strategy, "optimizer_step", OPTIMISER),
            ):
                clock.watch(owner, name, part)

        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == warm_up:
                clock.restart()
            if trainer.global_step == warm_up + steps:
                clock.mark()

    folder = Path(cfg.train_dataloader.dataset.data_root) / "train"
    images = ImageFolder(str(folder), transform=SimCLRTransform(input_size=size))
    repeats = math.ceil((steps + warm_up) * batch / len(images))
    loader: Any = DataLoader(
        torch.utils.data.ConcatDataset([images] * repeats),
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers(cfg),
        pin_memory=torch.cuda.is_available(),
    )
    trainer = Trainer(
        max_steps=warm_up + steps,
        precision="16-mixed" if torch.cuda.is_available() else "32-true",
        default_root_dir=tempfile.mkdtemp(),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[Timing()],
    )
    trainer.fit(SimCLR(), WatchedLoader(loader, clock))


def main() -> None:
    """Run and write images a second and the parts to ``out``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("recipe", "plain", "mmpretrain", "lightly"))
    parser.add_argument("config")
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--warm-up", type=int, required=True)
    parser.add_argument("--synchronise", action="store_true")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    cfg = Config.fromfile(args.config)
    cfg.train_dataloader.dataset.data_root = args.data
    if args.batch:
        cfg.train_dataloader.batch_size = args.batch
    batch = cfg.train_dataloader.batch_size
    torch.manual_seed(0)
    clock = Clock(args.synchronise)
    if args.kind == "lightly":
        run_lightly(cfg, clock, args.steps, args.warm_up)
    else:
        make = {"recipe": lambda cfg: cfg, "plain": plain, "mmpretrain": simclr}
        run_mmengine(make[args.kind](cfg), clock, args.steps, args.warm_up)
    seconds = clock.last - clock.start
    record = {
        "images": args.steps * batch,
        "seconds": seconds,
        "parts": {part: clock.seconds[part] for part in PARTS},
    }
    args.out.write_text(json.dumps(record))


if __name__ == "__main__":
    main()
