"""`BatchAugment`: the per-pixel half of two-view augmentation, on a whole batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from varcon_plugin.distributed import active_group, rank_of
from varcon_plugin.training.augment_plan import (
    AugmentParameters,
    apply_plan,
    make_plans,
    upload,
)
from varcon_plugin.training.rand_augment import MAX_MAGNITUDE, Policy
from varcon_plugin.training.seeding import mix_seeds

__all__ = ["AugmentParameters", "BatchAugment", "apply_augment"]

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
# Pixels handled at once: on a CPU they fit its cache, on a GPU they bound the memory.
CHUNK = {"cpu": 224 * 224}
DEFAULT_CHUNK = 512 * 224 * 224


class BatchAugment(nn.Module):
    """Flip, colour jitter, grayscale, blur and normalisation of a batch of crops.

    The SimCLR augmentation (https://arxiv.org/abs/2002.05709, appendix A) after the
    crop, with the distribution of mmpretrain's and lightly's per-image transforms:
    every image of every view draws its own parameters, the order of the jitter too.
    Runs where the batch is, without gradient: on a GPU in float16, elsewhere in
    float32, also under autocast. float16 moves a value by less than 0.3 of 255 grey
    levels on average, and by 3 at most.

    The random numbers are drawn on the host from (seed, rank, step) of `restart` and
    the number of calls since, so a batch is the same on any device. Without `restart`,
    the seed is ``torch.initial_seed()`` and the rank that of the process group.

    Args:
        flip_prob: probability of a horizontal flip.
        jitter_prob: probability of the colour jitter.
        brightness: factor drawn from U[max(0, 1 - brightness), 1 + brightness].
        contrast: as ``brightness``.
        saturation: as ``brightness``.
        hue: shift drawn from U[-hue, hue] turns, in [0, 0.5].
        grayscale_prob: probability of grayscale.
        blur_prob: probability of the Gaussian blur.
        blur_sigma: lowest and highest sigma, in pixels, drawn uniformly.
        solarize_prob: probability of inverting the pixels from 128 on, as in BYOL
            (https://arxiv.org/abs/2006.07733), though here before the colours.
        rand_augment: number of operations an image and their magnitude in [0, 30], of
            RandAugment (https://arxiv.org/abs/1909.13719), before all others. None:
            none.
        mean: of R, G, B in [0, 255]; None to leave the values in [0, 255].
        std: of R, G, B in [0, 255].
        channels_last: memory layout of the result.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        *,
        flip_prob: float = 0.5,
        jitter_prob: float = 0.8,
        brightness: float = 0.8,
        contrast: float = 0.8,
        saturation: float = 0.8,
        hue: float = 0.2,
        grayscale_prob: float = 0.2,
        blur_prob: float = 0.5,
        blur_sigma: tuple[float, float] = (0.1, 2.0),
        solarize_prob: float = 0.0,
        rand_augment: tuple[int, int] | None = None,
        mean: Sequence[float] | None = IMAGENET_MEAN,
        std: Sequence[float] | None = IMAGENET_STD,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.probabilities = {
            "flip_prob": flip_prob,
            "jitter_prob": jitter_prob,
            "grayscale_prob": grayscale_prob,
            "blur_prob": blur_prob,
        }
        chances = {**self.probabilities, "solarize_prob": solarize_prob}
        for name, value in chances.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value}")
        strengths = {
            "brightness": brightness,
            "contrast": contrast,
            "saturation": saturation,
            "hue": hue,
        }
        for name, value in strengths.items():
            if value < 0 or (name == "hue" and value > 0.5):
                limit = "in [0, 0.5]" if name == "hue" else ">= 0"
                raise ValueError(f"{name} must be {limit}, got {value}")
        if not 0 < blur_sigma[0] <= blur_sigma[1]:
            raise ValueError(
                f"blur_sigma must be (low, high) with 0 < low <= high, got {blur_sigma}"
            )
        if rand_augment is not None:
            number, magnitude = rand_augment
            if number < 1 or not 0 <= magnitude <= MAX_MAGNITUDE:
                raise ValueError(
                    "rand_augment must be (operations >= 1, magnitude in [0, "
                    f"{MAX_MAGNITUDE}]), got {rand_augment}"
                )
        self.solarize_prob, self.rand_augment = solarize_prob, rand_augment
        if (mean is None) != (std is None):
            raise ValueError(f"give both mean and std or neither, got {mean} and {std}")
        self.ranges = [
            (max(0.0, 1 - value), 1 + value) if name != "hue" else (-value, value)
            for name, value in strengths.items()
        ]
        self.blur_sigma = blur_sigma
        self.channels_last = channels_last
        self.mean, self.std = mean, std
        self._key: tuple[int, int, int] | None = None
        self._calls = 0

    def restart(self, seed: int, rank: int, step: int) -> None:
        """Let the numbers of the next calls follow from these three integers >= 0."""
        self._key, self._calls = (seed, rank, step), 0

    def draw(self, count: int, generator: torch.Generator) -> AugmentParameters:
        """Parameters for ``count`` images, from a generator on the CPU."""
        uniform = torch.rand(9, count, generator=generator)
        low, high = torch.tensor(self.ranges).unbind(dim=1)
        soft, strong = self.blur_sigma
        below = {
            name: uniform[row] < probability
            for row, (name, probability) in enumerate(self.probabilities.items())
        }
        return AugmentParameters(
            flip=below["flip_prob"],
            jitter=below["jitter_prob"],
            order=torch.rand(count, 4, generator=generator).argsort(dim=1),
            factors=low + (high - low) * uniform[4:8].T,
            gray=below["grayscale_prob"],
            blur=below["blur_prob"],
            sigma=soft + (strong - soft) * uniform[8],
        )

    # Random numbers and row indices come from the host: nothing to compile.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def forward(self, views: Sequence[Tensor]) -> list[Tensor]:
        """Augmented, normalised views, each (N, 3, H, W) float32.

        Args:
            views: each (N, H, W, 3) or (N, 3, H, W), uint8, RGB.

        Raises:
            TypeError: ``views`` is one tensor, or a view is not uint8.
            ValueError: a view has another shape.
        """
        if isinstance(views, Tensor):
            raise TypeError("views must be a sequence of batches, got one tensor")
        generator = torch.Generator().manual_seed(self._next_seed())
        return [self._augment(planar(view), generator) for view in views]

    def _augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        parameters = self.draw(len(images), generator)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        augmented = torch.empty(
            images.shape, device=images.device, memory_format=layout
        )
        limit = CHUNK.get(images.device.type, DEFAULT_CHUNK)
        chunk = max(1, limit // (images.shape[2] * images.shape[3]))
        policy = None
        if self.rand_augment or self.solarize_prob:
            policy = Policy.draw(
                len(images), self.solarize_prob, self.rand_augment, generator
            )
        plans = make_plans(parameters, chunk, self.mean, self.std)
        plans = upload(plans, images.device, working_dtype(images.device))
        starts = range(0, len(images), chunk)
        with torch.autocast(images.device.type, enabled=False):
            for start, plan in zip(starts, plans, strict=True):
                rows = slice(start, start + chunk)
                part = images[rows] if policy is None else policy.apply(images, rows)
                augmented[rows] = apply_plan(part, plan)
        return augmented

    def _next_seed(self) -> int:
        if self._key is None:
            self._key = (torch.initial_seed() % 2**63, rank_of(active_group()), 0)
        self._calls += 1
        return mix_seeds(*self._key, self._calls)


def apply_augment(images: Tensor, parameters: AugmentParameters) -> Tensor:
    """Apply given parameters to (N, 3, H, W) RGB, uint8; in [0, 255], float32."""
    plans = make_plans(parameters, len(images))
    (plan,) = upload(plans, images.device, torch.float32)
    return apply_plan(images, plan)


def working_dtype(device: torch.device) -> torch.dtype:
    """Half precision halves what a GPU moves; CPUs are slower in it."""
    return torch.float16 if device.type == "cuda" else torch.float32


def planar(images: Tensor, name: str = "views") -> Tensor:
    """(N, 3, H, W), as a view, of uint8 images that are that or (N, H, W, 3)."""
    if images.dtype != torch.uint8:
        raise TypeError(f"{name} must be uint8 in [0, 255], got {images.dtype}")
    if images.ndim == 4 and images.shape[1] == 3:
        return images
    if images.ndim == 4 and images.shape[3] == 3:
        return images.permute(0, 3, 1, 2)
    raise ValueError(
        f"{name} must be (N, H, W, 3) or (N, 3, H, W), got {tuple(images.shape)}"
    )
