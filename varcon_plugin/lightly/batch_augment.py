"""lightly's SimCLR transform with its per-pixel half on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightly.transforms.utils import IMAGENET_NORMALIZE
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn

from varcon_plugin.lightly.package import say_which_lightning
from varcon_plugin.training import BatchAugment
from varcon_plugin.training.crops import TwoCrops

__all__ = ["AugmentOnDevice", "EpochSeed", "SimCLRBatchTransform"]


class SimCLRBatchTransform(nn.Module):
    """What lightly's ``SimCLRTransform`` does after the crop, on a batch of crops.

    The datasets' transform is `varcon_plugin.training.crops.TwoCrops`. Call this in the
    LightningModule's ``on_after_batch_transfer`` while it trains, or put
    `AugmentOnDevice` in front of the module.

    Args:
        cj_prob: as the other arguments, by name, meaning and default that of
            ``SimCLRTransform``.
        cj_strength: multiplies the next four.
        cj_bright: brightness.
        cj_contrast: contrast.
        cj_sat: saturation.
        cj_hue: hue.
        random_gray_scale: probability.
        gaussian_blur: probability.
        sigmas: of the blur.
        hf_prob: probability of the horizontal flip.
        normalize: mean and std of R, G, B in [0, 1]; None to leave them there.
        channels_last: memory layout of the views.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        *,
        cj_prob: float = 0.8,
        cj_strength: float = 1.0,
        cj_bright: float = 0.8,
        cj_contrast: float = 0.8,
        cj_sat: float = 0.8,
        cj_hue: float = 0.2,
        random_gray_scale: float = 0.2,
        gaussian_blur: float = 0.5,
        sigmas: tuple[float, float] = (0.1, 2),
        hf_prob: float = 0.5,
        normalize: Mapping[str, Sequence[float]] | None = IMAGENET_NORMALIZE,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        scale = normalize or {"mean": (0.0,) * 3, "std": (1.0,) * 3}
        self.augment = BatchAugment(
            flip_prob=hf_prob,
            jitter_prob=cj_prob,
            brightness=cj_strength * cj_bright,
            contrast=cj_strength * cj_contrast,
            saturation=cj_strength * cj_sat,
            hue=cj_strength * cj_hue,
            grayscale_prob=random_gray_scale,
            blur_prob=gaussian_blur,
            blur_sigma=sigmas,
            mean=[255 * value for value in scale["mean"]],
            std=[255 * value for value in scale["std"]],
            channels_last=channels_last,
        )

    def forward(self, batch: Sequence[Any]) -> tuple[Any, ...]:
        """The batch with its views augmented, each (N, 3, H, W) float32.

        Args:
            batch: (views, targets, ...), as lightly's datasets yield it; views are
                those of `TwoCrops`, (N, H, W, 3) uint8 each.

        Raises:
            TypeError: the views are not uint8: the dataset augments them already?
        """
        views, *rest = batch
        return (self.augment(views), *rest)


class AugmentOnDevice:
    """Mixin: a LightningModule's training batches pass through ``batch_transform``.

    Examples:
        >>> class FastVarCon(AugmentOnDevice, VarCon): ...
        >>> model = FastVarCon(batch_size_per_device=256, num_classes=1000)
        >>> model.batch_transform = SimCLRBatchTransform()
    """

    batch_transform: SimCLRBatchTransform
    trainer: Trainer

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Lightning's hook: the batch is on the device."""
        return self.batch_transform(batch) if self.trainer.training else batch


class EpochSeed(Callback):
    """Makes crops and augmentation follow from a seed, the rank and the epoch.

    When Lightning resumes a run it starts all random numbers anew: those of the first
    epoch would come again. The order of the images is the sampler's.

    Args:
        crops: the transform of the training dataset.
        transform: what augments the batches.
        seed: of the run, >= 0.
    """

    def __init__(
        self, crops: TwoCrops, transform: SimCLRBatchTransform, seed: int = 0
    ) -> None:
        say_which_lightning(self)
        self.parts = (crops.worker_seed, transform.augment)
        self.seed = seed

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before Lightning starts the workers of the first epoch of a new run."""
        if trainer.ckpt_path is None:
            self._restart(trainer, 0)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Before Lightning starts the workers of the first epoch after a resume."""
        self._restart(trainer, checkpoint["global_step"])

    def on_train_epoch_start(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Before Lightning starts the workers of every other epoch."""
        self._restart(trainer, trainer.global_step)

    def _restart(self, trainer: Trainer, step: int) -> None:
        for part in self.parts:
            part.restart(self.seed, trainer.global_rank, step)
