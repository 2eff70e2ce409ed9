"""Checks that stop a run before it wastes time."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS
from torch import Tensor, nn

from varcon_plugin.checkpoints.reading import listed
from varcon_plugin.loss import VarConLoss
from varcon_plugin.mmpretrain.checkpoints import load_weights, with_dot
from varcon_plugin.mmpretrain.unwrap import leaves, unwrapped

__all__ = ["LabelCheckHook", "PretrainedCheckHook", "check_labels"]


MOST_ALONE = 20
ALONE = "a batch holds images of a single class"


@HOOKS.register_module()
class LabelCheckHook(Hook):
    """Before training: do labels arrive, and are they classes that the loss knows?"""

    def before_train(self, runner: Runner) -> None:
        """Run the first sample through the pipeline, looking for ``gt_label``.

        Raises:
            ValueError: names the dataset, or the pipeline step, that lost the label; or
                a label is outside of the ``num_classes`` of the loss, which on a GPU
                would end the run later and with a message that says nothing.
        """
        dataset = runner.train_dataloader.dataset
        check_labels(dataset)
        check_range(dataset, unwrapped(runner))
        self.alone, self.learns = 0, False

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Say it when a batch is of one class; end a run that has no others.

        Raises:
            ValueError: the first `MOST_ALONE` batches are of one class each.
        """
        values = {
            name: float(torch.as_tensor(value).detach())
            for name, value in (outputs or {}).items()
            if name in ("loss", "confidence")
        }
        if values.get("confidence") != 1 or values.get("loss") != 0:
            self.learns = True
            return
        self.alone += 1
        if self.alone == 1:
            runner.logger.warning(f"{ALONE}: the loss is 0, it teaches nothing")
        if not self.learns and self.alone == min(MOST_ALONE, runner.max_iters):
            raise ValueError(
                f"{ALONE}, and so do all {self.alone} from the start: nothing is "
                "learned. Shuffle (train_dataloader.sampler.shuffle=True); see that "
                "the dataset has several classes"
            )


def check_labels(dataset: Any) -> None:
    """Raise ValueError if images have no label, or lose it in the pipeline."""
    for part in leaves(dataset):
        if hasattr(part, "get_data_info"):
            follow_label(part)


def follow_label(dataset: Any) -> None:
    """Take the first image through the pipeline, looking for ``gt_label``."""
    sample = dataset.get_data_info(0)
    name = type(dataset).__name__
    if "gt_label" not in sample:
        raise ValueError(
            f"VarCon needs labels, but the training dataset {name} has no gt_label "
            "(with_label=False, a test split, or a folder without class folders?)"
        )
    for step in getattr(dataset.pipeline, "transforms", []):
        sample = step(sample)
        if sample is None:  # mmengine draws another image then
            return
        if "gt_label" not in sample.get("data_samples", sample):
            raise ValueError(
                f"VarCon needs labels, but the pipeline step {type(step).__name__} of "
                f"the training dataset {name} lost gt_label"
            )


@HOOKS.register_module()
class PretrainedCheckHook(Hook):
    """Before training: does the backbone hold exactly what its checkpoint holds?

    mmengine only warns when a pretrained checkpoint does not fit, and a linear
    evaluation of random features then looks like a bad result.
    """

    def before_train(self, runner: Runner) -> None:
        """Compare the backbone with the checkpoint of its ``init_cfg``.

        Raises:
            ValueError: no checkpoint is configured, or weights are missing or differ.
        """
        backbone = unwrapped(runner).backbone
        init_cfg = backbone.init_cfg or {}
        path = init_cfg.get("checkpoint")
        if not path:
            raise ValueError(
                "model.backbone.init_cfg.checkpoint is not set: give the pretrained "
                "checkpoint, --cfg-options model.backbone.init_cfg.checkpoint=PATH"
            )
        prefix = with_dot(init_cfg.get("prefix", ""))
        loaded = load_weights(path)
        wrong = [
            name
            for name, value in backbone.state_dict().items()
            if not same(value, loaded.get(prefix + name))
        ]
        if wrong:
            raise ValueError(
                f"checkpoint {path} did not fill the backbone: {len(wrong)} of "
                f"{len(backbone.state_dict())} entries are missing or differ in it "
                f"(prefix {prefix!r}): {listed(wrong, 5)}"
            )


def check_range(dataset: Any, model: nn.Module) -> None:
    """Raise ValueError if a label of ``dataset`` is no class of a loss in ``model``."""
    losses = [module for module in model.modules() if isinstance(module, VarConLoss)]
    sizes = [loss.centroids.num_classes for loss in losses]
    known = min((size for size in sizes if size is not None), default=None)
    if known is None or not hasattr(dataset, "get_gt_labels"):
        return
    try:
        labels = torch.as_tensor(dataset.get_gt_labels())
    except KeyError:  # without labels, which is told next
        return
    if labels.ndim == 1 and not 0 <= labels.min() <= labels.max() < known:
        raise ValueError(
            f"the labels of {type(dataset).__name__} are {int(labels.min())} to "
            f"{int(labels.max())}, but the loss has num_classes={known}: set "
            "num_classes in model.head.loss (or in its centroids) to the number of "
            "classes"
        )


def same(value: Tensor, loaded: Tensor | None) -> bool:
    """Whether the two hold the same numbers."""
    return loaded is not None and torch.equal(value.cpu(), loaded.cpu())
