"""`SpeedrunNet`: a small convolutional network that learns CIFAR in minutes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SpeedrunNet", "patch_basis"]


class SpeedrunNet(nn.Module):
    """Images of 32 pixels or so to pooled features, at little cost.

    The plan of the CIFAR speed runs (Jordan, https://arxiv.org/abs/2404.00498): a
    fixed stem that decorrelates patches of 2 x 2 pixels, then groups of two 3 x 3
    convolutions, the first of each max-pooled, and a global max-pool. There the stem is
    the principal components of the training images; here it is `patch_basis`, which
    needs no images, and a batch normalisation that gives each component unit variance.
    ReLU in place of GELU, which is cheaper.

    Args:
        widths: channels of the groups; the last one is the number of features.

    Attributes:
        num_features: of an image.

    Raises:
        ValueError: there are no widths, or one is < 1.
    """

    basis: Tensor

    def __init__(self, widths: Sequence[int] = (32, 128, 128)) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise ValueError(f"widths must be one or more numbers >= 1, got {widths}")
        self.num_features = widths[-1]
        self.register_buffer("basis", patch_basis(), persistent=False)
        self.whiten = nn.BatchNorm2d(len(self.basis), affine=False)
        sizes = (2 * len(self.basis), *widths)
        self.groups = nn.Sequential(
            *(group(*pair) for pair in zip(sizes, widths, strict=False))
        )

    def forward(self, images: Tensor) -> Tensor:
        """Features (N, ``num_features``) of images (N, 3, H, W).

        H and W are at least 2 to the number of groups, plus one: 9 for three groups.
        """
        components = self.whiten(F.conv2d(images, self.basis.to(images.dtype)))
        signed = torch.cat((components, -components), dim=1).relu()
        features: Tensor = self.groups(signed)
        return features.amax(dim=(2, 3))


def patch_basis() -> Tensor:
    """Orthonormal filters (12, 3, 2, 2) that nearly decorrelate natural images.

    The products of three opponent colours (sum of R, G, B; R - B; R - 2 G + B) and the
    four Haar patterns of 2 x 2 pixels, close to the principal components of patches.
    """
    colours = torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]])
    colours /= colours.norm(dim=1, keepdim=True)
    haar = torch.tensor([[1.0, 1], [1, -1]]) / 2**0.5
    return torch.einsum("kc,ay,bx->kabcyx", colours, haar, haar).reshape(12, 3, 2, 2)


def group(channels: int, width: int) -> nn.Sequential:
    """Two convolutions; the first one's output is half as high and wide."""

    def convolution(channels: int) -> nn.Conv2d:
        return nn.Conv2d(channels, width, 3, padding=1, bias=False)

    return nn.Sequential(
        convolution(channels),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        convolution(width),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )
