"""Checks that stop a run before it wastes time."""

from __future__ import annotations

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS
from torch import Tensor

from varcon_plugin.checkpoints.reading import listed
from varcon_plugin.mmpretrain.checkpoints import load_weights, with_dot
from varcon_plugin.mmpretrain.unwrap import unwrapped

__all__ = ["LabelCheckHook", "PretrainedCheckHook"]


@HOOKS.register_module()
class LabelCheckHook(Hook):
    """Before training: does a training sample still have its label after each step?"""

    def before_train(self, runner: Runner) -> None:
        """Run the first sample through the pipeline, looking for ``gt_label``.

        Raises:
            ValueError: names the dataset, or the pipeline step, that lost the label.
        """
        dataset = runner.train_dataloader.dataset
        while hasattr(dataset, "dataset"):  # RepeatDataset and the like
            dataset = dataset.dataset
        if not hasattr(dataset, "get_data_info"):
            return
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
                    "VarCon needs labels, but the pipeline step "
                    f"{type(step).__name__} of the training dataset {name} lost "
                    "gt_label"
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


def same(value: Tensor, loaded: Tensor | None) -> bool:
    """Whether the two hold the same numbers."""
    return loaded is not None and torch.equal(value.cpu(), loaded.cpu())
