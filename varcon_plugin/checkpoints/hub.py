"""A folder for the Hugging Face Hub: weights, configuration, model card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from torch import nn

from varcon_plugin.checkpoints.backbones import fixed_side
from varcon_plugin.checkpoints.conversion import Backbone, save_weights, timm_model
from varcon_plugin.checkpoints.recorded import Input
from varcon_plugin.checkpoints.writing import write_atomically

__all__ = ["write_hub_folder"]

CITATION = """@inproceedings{wang2025varcon,
  title     = {Variational Supervised Contrastive Learning},
  author    = {Wang, Ziwen and Fan, Jiajun and Nguyen, Thao and Ji, Heng and Liu, Ge},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2025},
  eprint    = {2506.07413},
}"""
# What timm says of its own weights under the same name (their licence, paper, address,
# the sizes they were tested at) is not true of these.
OF_THE_NETWORK = (
    "architecture", "classifier", "first_conv", "fixed_input_size", "input_size",
    "num_classes", "pool_size",
)  # fmt: skip


def write_hub_folder(
    backbone: Backbone,
    folder: Path,
    *,
    source: str,
    taken: Input | None,
    results: str | None = None,
    license_id: str | None = None,
) -> None:
    """Write ``model.safetensors``, ``config.json`` and ``README.md``.

    ``timm.create_model("local-dir:FOLDER")`` (or ``hf-hub:USER/NAME``, once uploaded)
    loads it. timm has no ResNets with the stem of CIFAR: there the model card shows the
    lines that do.

    Args:
        backbone: of a standard architecture.
        folder: created if missing.
        source: what the weights come from, for the card.
        taken: what the model was trained on. None takes the size that the weights of a
            vision transformer are of, and the mean and standard deviation of ImageNet.
        results: of an evaluation, in Markdown, for the card.
        license_id: of the weights, as the Hub names it.

    Each file appears whole or not at all.

    Raises:
        ValueError: as `timm_model`, or nothing tells the size of the images.
        OSError: the disk is full, the folder cannot be written, ...
    """
    model: Any = timm_model(backbone)
    side = fixed_side(model)
    if side is not None:
        taken = Input(side) if taken is None else taken._replace(size=side)
    if taken is None:
        raise ValueError(
            f"{source} does not say what images it was trained on: give --config, the "
            "mmpretrain config of its training"
        )
    data = {
        "input_size": (3, taken.size, taken.size),
        "mean": tuple(taken.mean),
        "std": tuple(taken.std),
        "interpolation": "bilinear",  # as tools/evaluate.py sees images
        "crop_pct": 0.875 if taken.size > 64 else 1.0,
    }
    if license_id is not None:
        data["license"] = license_id
    if backbone.stem == "cifar":
        config = {
            "architecture": backbone.arch,
            "stem": backbone.stem,
            "model_args": backbone.options,
            "num_features": model.num_features,
            **data,
        }
        content = json.dumps(config, indent=2) + "\n"
    else:
        known = model.pretrained_cfg
        model.pretrained_cfg = {k: known[k] for k in OF_THE_NETWORK if k in known}
        about = {"pretrained_cfg": {**data, "tag": "varcon"}}
        options = {**backbone.options, **({"img_size": side} if side else {})}
        content = timm_config(model, about, options)
    card = model_card(backbone, folder.name, source, taken, results, license_id)
    save_weights(model.state_dict(), folder / "model.safetensors")
    for name, text in (("config.json", content), ("README.md", card)):
        write_atomically(folder / name, partial(write_text, text))


def timm_config(
    model: nn.Module, about: dict[str, Any], options: dict[str, Any]
) -> str:
    """What timm writes of ``model``, built with ``options``, beside its weights."""
    from timm.models._hub import save_config_for_hf  # of save_for_hf, which is public

    with TemporaryDirectory() as folder:
        path = Path(folder, "config.json")
        save_config_for_hf(model, str(path), about, options)
        return path.read_text()


def write_text(text: str, file: BinaryIO) -> None:
    """Write ``text`` as UTF-8."""
    file.write(text.encode())


def model_card(
    backbone: Backbone,
    name: str,
    source: str,
    taken: Input,
    results: str | None,
    license_id: str | None,
) -> str:
    """The README of the folder, with the Hub's front matter."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        license=license_id,
        library_name="timm" if backbone.stem != "cifar" else None,
        pipeline_tag="image-feature-extraction",
        tags=["varcon", "supervised-contrastive-learning"],
    )
    stem = " with a 3x3 stem for small images" if backbone.stem == "cifar" else ""
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name}",
        f"A {backbone.arch}{stem}, written by varcon_plugin, which trains with "
        "Variational Supervised Contrastive Learning (VarCon, [arXiv 2506.07413]"
        "(https://arxiv.org/abs/2506.07413)). It turns images into features; there is "
        "no classifier.",
        f"- Weights from `{source}`\n- Input: RGB, {taken.size} x {taken.size}, mean "
        f"{numbers(taken.mean)}, standard deviation {numbers(taken.std)} of channels "
        "in [0, 1]",
        "## Use",
        f"```python\n{usage(backbone, name)}\n```",
        "## Evaluation",
        results or "None was given.",
        "## Citation",
        f"```bibtex\n{CITATION}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def numbers(values: Sequence[float]) -> str:
    """(0.485, 0.456, 0.406)."""
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"


def usage(backbone: Backbone, name: str) -> str:
    """The lines of Python that load the folder and encode images."""
    if backbone.stem != "cifar":
        return (
            "import timm\n\n"
            f'model = timm.create_model("local-dir:{name}", pretrained=True).eval()\n'
            "features = model(images)  # (N, 3, H, W) to (N, F)"
        )
    width = len(backbone.weights["conv1.weight"])
    more = "".join(f", {key}={value!r}" for key, value in backbone.options.items())
    return (
        "import timm\nfrom safetensors.torch import load_file\nfrom torch import nn\n\n"
        f'model = timm.create_model("{backbone.arch}", num_classes=0{more})\n'
        f"model.conv1 = nn.Conv2d(3, {width}, 3, padding=1, bias=False)\n"
        "model.maxpool = nn.Identity()\n"
        f'model.load_state_dict(load_file("{name}/model.safetensors"))\n'
        "features = model.eval()(images)  # (N, 3, H, W) to (N, F)"
    )
