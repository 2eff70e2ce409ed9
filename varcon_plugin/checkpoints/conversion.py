"""Checkpoints from one place to another: the authors' code, our doors, other libraries.

The weights of a backbone get the names that torchvision and timm share, whatever wrote
them; each target then loads them strictly, so that a file that is written also loads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from varcon_plugin.checkpoints.backbones import create_for_weights, shrink_stem
from varcon_plugin.checkpoints.reading import listed, named_weights, read_checkpoint
from varcon_plugin.checkpoints.recorded import Input, recorded
from varcon_plugin.checkpoints.weights import read_weights
from varcon_plugin.checkpoints.writing import save, write_atomically

__all__ = ["Backbone", "read_backbone", "timm_model", "torchvision_model"]

PREFIXES = ("backbone.timm_model.", "backbone.", "encoder.module.", "encoder.")
RESNETS: dict[
    tuple[tuple[int, ...], bool], str
] = {  # blocks in each stage, and whether they are bottlenecks
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
    ((3, 24, 36, 3), True): "resnet200",
}
STEMS = {3: "cifar", 7: "imagenet"}  # by the side of the first kernel


class Backbone(NamedTuple):
    """Weights of an encoder under timm's (and torchvision's) names.

    Attributes:
        weights: without projection or classifier.
        arch: name in timm (and torchvision), None if it is neither said nor a standard
            ResNet.
        stem: of a ResNet, ``"cifar"`` is one 3x3 convolution without stride or pool.
        projection: weights of the authors' two-layer head as mmpretrain's MoCoV2Neck
            names them; empty for others.
        in_mmpretrain: whether it is mmpretrain's own ResNet in our configs, and not
            timm's model.
        options: further arguments of ``timm.create_model``, as in training.
        taken: what it was trained on; None if the checkpoint does not say.
    """

    weights: dict[str, Tensor]
    arch: str | None
    stem: str
    projection: dict[str, Tensor]
    in_mmpretrain: bool
    options: dict[str, Any]
    taken: Input | None


def read_backbone(path: Path, arch: str | None = None) -> Backbone:
    """The backbone in a checkpoint of mmpretrain, lightly, the authors or SupContrast.

    How it was built is read from the checkpoint where Lightning or mmengine wrote it
    there, and of standard ResNets from the weights. Read as data alone
    (`varcon_plugin.checkpoints.reading.read_checkpoint`).

    Args:
        path: torch or safetensors file.
        arch: timm's name, where neither says it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no backbone.
    """
    content: Any = None
    if path.suffix == ".safetensors":
        weights = read_weights(path)
    else:
        content = read_checkpoint(path, "cpu")
        weights = named_weights(content, path)
    prefix = next((p for p in PREFIXES if any(n.startswith(p) for n in weights)), "")
    own = {
        rename(name.removeprefix(prefix)): tensor
        for name, tensor in weights.items()
        if name.startswith(prefix) and not is_classifier(name)
    }
    if not own or not any(name.endswith(".weight") for name in own):
        raise ValueError(
            f"{path} holds no backbone: expected names that start with backbone. or "
            f"encoder., got {listed(list(weights), 3)}"
        )
    found, stem = describe(own)
    head = prefix.startswith("encoder.")
    projection = {
        f"mlp.{name.removeprefix('head.').removeprefix('module.')}": tensor
        for name, tensor in weights.items()
        if head and re.match(r"head\.(module\.)?[02]\.", name)
    }
    native = bool(stem) and prefix != PREFIXES[0] and found != "resnet200"
    said = recorded(content)
    options = said.options if arch in (None, said.arch) else {}
    name = arch or said.arch or found
    return Backbone(own, name, stem, projection, native, options, said.taken)


def rename(name: str) -> str:
    """The authors' name of a weight of a ResNet as torchvision has it."""
    return name.replace(".shortcut.", ".downsample.")


def is_classifier(name: str) -> bool:
    """Whether a plain checkpoint of torchvision or timm has this in its classifier."""
    return name.split(".")[0] in ("fc", "head", "classifier")


def describe(weights: Mapping[str, Tensor]) -> tuple[str | None, str]:
    """Name and stem of a standard ResNet, from the shapes of its weights alone."""
    blocks = [
        {name.split(".")[1] for name in weights if name.startswith(f"layer{stage}.")}
        for stage in (1, 2, 3, 4)
    ]
    first = weights.get("conv1.weight")
    inner = weights.get("layer1.0.conv1.weight")
    if first is None or inner is None or first.shape[-1] not in STEMS:
        return None, ""
    bottleneck = "layer1.0.conv3.weight" in weights
    standard = first.shape[0] == 64 and inner.shape[0] == 64
    arch = RESNETS.get((tuple(map(len, blocks)), bottleneck)) if standard else None
    return arch, STEMS[first.shape[-1]]


def torchvision_model(backbone: Backbone) -> nn.Module:
    """Torchvision's model with the weights, without classifier: images to (N, F).

    Raises:
        ValueError: torchvision has no such model, or the weights do not fill it.
    """
    from torchvision.models import get_model, list_models

    arch = checked_arch(backbone, "torchvision")
    if arch not in list_models() or not arch.startswith("resnet"):
        raise ValueError(
            f"torchvision has no ResNet {arch!r} with these names; write timm or "
            "safetensors instead"
        )
    model = get_model(arch, weights=None)
    model.fc = nn.Identity()
    return filled(model, backbone, "torchvision")


def timm_model(backbone: Backbone) -> nn.Module:
    """Timm's model with the weights, without classifier: images to (N, F).

    A vision transformer is built for images of the size that the weights are of.

    Args:
        backbone: with an ``arch`` that timm knows.

    Raises:
        ValueError: timm has no such model, or the weights do not fill it.
    """
    arch = checked_arch(backbone, "timm")
    model = create_for_weights(arch, backbone.weights, **backbone.options)
    return filled(model, backbone, "timm")


def checked_arch(backbone: Backbone, library: str) -> str:
    """The name of the architecture, if there is one."""
    if backbone.arch is None:
        raise ValueError(
            f"the backbone is no standard ResNet that {library} would know, and the "
            "checkpoint does not say which it is; name its timm model with --arch, or "
            "write plain weights (safetensors, varcon)"
        )
    return backbone.arch


def filled(model: nn.Module, backbone: Backbone, library: str) -> nn.Module:
    """``model``, in evaluation mode, with the stem and all weights of ``backbone``."""
    if backbone.stem == "cifar":
        shrink_stem(model, f"{library}'s {backbone.arch}")
    try:
        model.load_state_dict(backbone.weights, strict=True)
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise ValueError(
            f"the weights do not fill {library}'s {backbone.arch}: {text[:400]}"
        ) from error
    return model.eval()


def varcon_state(backbone: Backbone) -> dict[str, Tensor]:
    """State of our mmpretrain models (and of the backbone of lightly's)."""
    inner = "backbone." if backbone.in_mmpretrain else "backbone.timm_model."
    state = {inner + name: tensor for name, tensor in backbone.weights.items()}
    return state | {f"neck.{n}": tensor for n, tensor in backbone.projection.items()}


def save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write safetensors or, for any other suffix, what ``torch.load`` reads.

    The file appears whole or not at all.

    Raises:
        OSError: the disk is full, the folder cannot be written, ...
    """
    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    if path.suffix == ".safetensors":
        from safetensors.torch import save as to_bytes

        content = to_bytes(tensors, {"format": "pt"})
        write_atomically(path, lambda file: file.write(content))
    else:
        save(tensors, path)
