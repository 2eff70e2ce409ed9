"""k-NN accuracy during training: is the run learning?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.dist import broadcast, broadcast_object_list
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS
from torch import Tensor, nn

from varcon_plugin.evaluation.features import extract_features
from varcon_plugin.evaluation.images import ImageDataset, Images
from varcon_plugin.evaluation.knn import check_bank, knn_accuracy
from varcon_plugin.mmpretrain.evaluation import (
    MMEncoder,
    MMTransform,
    flips,
    read_dataset,
    reads_bgr,
)
from varcon_plugin.mmpretrain.unwrap import unwrapped

__all__ = ["KNNHook"]


@HOOKS.register_module()
class KNNHook(Hook):
    """Every ``interval`` epochs, and after the last: k-NN on the backbone's features.

    Writes ``knn/top1`` and ``knn/top5``, in percent, to the log, to every visualiser
    and to the message hub. They are validation metrics: ``save_best="knn/top1"`` of the
    checkpoint hook and ``monitor="knn/top1"`` of ``EarlyStoppingHook`` work.

    All ranks encode with the model of rank 0, the one that checkpoints hold, and rank 0
    compares. Each module's train or evaluation mode and
    each rank's own BatchNorm statistics come back afterwards, and no random number of
    the run is used: training goes on as it would without the hook.

    Args:
        bank: config of the dataset to look for neighbours in, such as the training
            images, with a test pipeline. ``indices=N`` takes the first N of them.
        test: config of the dataset to classify.
        interval: epochs between two evaluations.
        k: number of neighbours.
        temperature: a neighbour votes with exp(cosine / temperature).
        batch_size: images for each rank at a time.
        num_workers: processes that read images, for each rank; None is as many as the
            training loader has.
    """

    priority = "LOW"

    def __init__(
        self,
        bank: dict[str, Any],
        test: dict[str, Any],
        *,
        interval: int = 1,
        k: int = 20,
        temperature: float = 0.07,
        batch_size: int = 256,
        num_workers: int | None = None,
    ) -> None:
        if interval < 1:
            raise ValueError(f"interval must be >= 1, got {interval}")
        self.configs = {"bank": bank, "test": test}
        self.interval = interval
        self.k = k
        self.temperature = temperature
        self.batch_size = batch_size
        self.num_workers = num_workers

    def before_train(self, runner: Runner) -> None:
        """Read the lists of images.

        Raises:
            ValueError: ``k`` is larger than the bank, or a dataset is empty.
        """
        self.images: dict[str, Images] = {
            name: read_dataset(config) for name, config in self.configs.items()
        }
        check_bank(self.k, len(self.images["bank"].items))

    def after_train_epoch(self, runner: Runner) -> None:
        """Evaluate, if it is time."""
        last = runner.epoch + 1 == runner.max_epochs
        if not (last or self.every_n_epochs(runner, self.interval)):
            return
        model = unwrapped(runner)
        bgr = reads_bgr(runner.cfg) or flips(model.data_preprocessor)
        workers = self.num_workers
        if workers is None:
            workers = runner.train_dataloader.num_workers
        encoder = MMEncoder(model, bgr)
        device = next(encoder.parameters()).device
        features = {}
        with buffers_of_first_rank(model):
            for name, images in self.images.items():
                transform = MMTransform(self.configs[name]["pipeline"], bgr)
                features[name] = extract_features(
                    encoder,
                    ImageDataset(images.items, transform),
                    batch_size=self.batch_size,
                    workers=workers,
                    device=device,
                    title=f"k-NN {name}",
                )
        metrics: list[dict[str, float] | None] = [
            self._compare(runner, features, device)
        ]
        broadcast_object_list(metrics)
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook | EarlyStoppingHook):
                with epoch_done(runner):
                    hook.after_val_epoch(runner, metrics[0])

    def _compare(
        self, runner: Runner, features: dict[str, Tensor | None], device: torch.device
    ) -> dict[str, float] | None:
        """Accuracies of the features, logged; None but on rank 0, which has them."""
        bank, test = features["bank"], features["test"]
        if bank is None or test is None:
            return None
        accuracy = knn_accuracy(
            bank,
            self.images["bank"].labels,
            test.to(device),
            self.images["test"].labels.to(device),
            ks=[self.k],
            temperatures=[self.temperature],
        )[self.k, self.temperature]
        scalars = {"knn/top1": accuracy.top1, "knn/top5": accuracy.top5}
        runner.visualizer.add_scalars(scalars, step=runner.epoch + 1)
        for tag, value in scalars.items():
            runner.message_hub.update_scalar(tag, value)
        runner.logger.info(
            f"Epoch {runner.epoch + 1}: k-NN top-1 {accuracy.top1:.2f} %, top-5 "
            f"{accuracy.top5:.2f} % (k={self.k}, T={self.temperature:g}, "
            f"{len(bank):,} images in the bank)"
        )
        return scalars


@contextmanager
def epoch_done(runner: Runner) -> Iterator[None]:
    """Within, the epoch counts as done: mmengine validates after it has counted it."""
    runner.train_loop._epoch += 1
    try:
        yield
    finally:
        runner.train_loop._epoch -= 1


@contextmanager
def buffers_of_first_rank(model: nn.Module) -> Iterator[None]:
    """Buffers, such as BatchNorm statistics, as rank 0 has them; then each rank's own.

    DDP keeps only parameters equal.
    """
    own = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for buffer in model.buffers():
        broadcast(buffer, src=0)
    try:
        yield
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(own[name])
