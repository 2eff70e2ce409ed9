"""What a checkpoint says of its network and of the images that it was trained on.

Lightning keeps the arguments of the module, mmengine the text of the config; both are
read as data.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from varcon_plugin.checkpoints.backbones import sized

__all__ = ["Input", "Recorded", "input_of", "literals", "recorded"]

CROPS = ("RandomResizedCrop", "TwoCrops")
NOT_OF_TIMM = ("type", "model_name", "frozen", "init_cfg")
BRING_FILES = ("pretrained", "checkpoint_path", "cache_dir")  # and what starts so


class Input(NamedTuple):
    """What the model takes: RGB in [0, 1], normalised.

    Attributes:
        size: side of the images in pixels; a vision transformer's own goes before.
        mean: of the channels.
        std: of the channels.
    """

    size: int
    mean: Sequence[float] = (0.485, 0.456, 0.406)
    std: Sequence[float] = (0.229, 0.224, 0.225)


class Recorded(NamedTuple):
    """How a backbone was built and trained, as far as its checkpoint says so.

    Attributes:
        arch: name in timm; None if it is not said, or no model of timm's.
        options: further arguments of ``timm.create_model``.
        taken: what the model was trained on.
    """

    arch: str | None
    options: dict[str, Any]
    taken: Input | None


def recorded(content: Any) -> Recorded:
    """What the content of a checkpoint of Lightning or mmengine says.

    Args:
        content: as `varcon_plugin.checkpoints.reading.read_checkpoint` returns it.
    """
    settings, meta = (
        content.get(name) if isinstance(content, dict) else None
        for name in ("hyper_parameters", "meta")
    )
    if isinstance(settings, dict) and isinstance(settings.get("backbone"), str):
        size, name = settings.get("image_size"), settings["backbone"]
        options = options_of(settings.get("backbone_kwargs"))
        if not isinstance(size, int):
            return Recorded(name, options, None)
        return Recorded(name, sized(name, size, options), Input(size))
    text = meta.get("cfg") if isinstance(meta, dict) else None
    if not isinstance(text, str):
        return Recorded(None, {}, None)
    config = literals(text)
    try:
        taken = input_of(config)
    except ValueError:
        taken = None
    backbone = dig(config, "model", "backbone") or {}
    name = backbone.get("model_name")
    if not isinstance(name, str):
        return Recorded(None, {}, taken)
    return Recorded(name, options_of(backbone), taken)


def options_of(settings: Any) -> dict[str, Any]:
    """Arguments of ``timm.create_model`` that bring no weights of other files."""
    return {
        name: value
        for name, value in (settings.items() if isinstance(settings, dict) else ())
        if isinstance(name, str)
        and name not in NOT_OF_TIMM
        and not name.startswith(BRING_FILES)
    }


def input_of(config: Mapping[str, Any]) -> Input:
    """Image size, mean and standard deviation of a config of mmpretrain.

    Args:
        config: its values, as `literals` reads them.

    Raises:
        ValueError: it does not say one of them.
    """
    sizes = set(crop_sizes(config.get("train_dataloader")))
    if not sizes:
        raise ValueError("its train_dataloader crops images to no size")
    own = dig(config, "data_preprocessor"), dig(config, "model", "data_preprocessor")
    preprocessor = own[0] or own[1] or {}
    scaled = []
    for key in ("mean", "std"):
        values = preprocessor.get(key)
        if not isinstance(values, list) or not all(map(is_number, values)):
            raise ValueError(f"its data_preprocessor has no {key}")
        scaled.append([value / 255 for value in values])
    return Input(max(sizes), *scaled)  # of several views, the large ones


def dig(config: Mapping[str, Any], *names: str) -> dict[str, Any] | None:
    """A dict within dicts; None where there is none."""
    found: Any = config
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, dict) else None


def crop_sizes(node: Any) -> Iterator[int]:
    """Sizes of all random resized crops anywhere in the values of a config."""
    if isinstance(node, dict):
        size = node.get("scale")
        if isinstance(size, list):
            size = max((side for side in size if isinstance(side, int)), default=None)
        if str(node.get("type")).endswith(CROPS) and isinstance(size, int):
            yield size
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from crop_sizes(child)


def is_number(value: Any) -> bool:
    """Whether ``value`` is a number."""
    return isinstance(value, int | float)


def literals(text: str) -> dict[str, Any]:
    """The values of a config that mmengine wrote as Python; nothing is executed.

    What is no literal, list, tuple or dict is None; tuples are lists.
    """
    try:
        lines = ast.parse(text).body
        return {
            line.targets[0].id: value_of(line.value)
            for line in lines
            if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name)
        }
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return {}


def value_of(node: ast.expr) -> Any:
    """The value of an expression without names."""
    if isinstance(node, ast.List | ast.Tuple):
        return [value_of(item) for item in node.elts]
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "dict":
        return {item.arg: value_of(item.value) for item in node.keywords if item.arg}
    if isinstance(node, ast.Dict):
        keys = [None if key is None else value_of(key) for key in node.keys]
        pairs = zip(keys, map(value_of, node.values), strict=True)
        return {key: value for key, value in pairs if isinstance(key, str)}
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return None
