"""Building parts of a config so that a mistake names the key it stands under."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from copy import deepcopy
from difflib import get_close_matches
from typing import Any

from mmengine.registry import Registry
from mmpretrain.registry import TRANSFORMS

__all__ = ["ConfigError", "build", "check_arguments", "one_line", "type_name"]

PARTS = (
    "backbone", "neck", "head", "loss", "centroids", "data_preprocessor",
    "dataset", "datasets", "pipeline", "transforms",
)  # fmt: skip
UNEXPECTED = re.compile(r"unexpected keyword argument '(\w+)'")
UNKNOWN = re.compile(r"^'?(\S+) is not in the \S+ registry")


class ConfigError(Exception):
    """A mistake in a config: one line that begins with its key."""


def build(registry: Registry, config: Any, key: str, **more: Any) -> Any:
    """What ``config`` describes.

    Args:
        registry: of mmpretrain.
        config: with a ``type``.
        key: where it stands in the whole config.
        more: arguments that mmengine adds.

    Raises:
        ConfigError: names the innermost part that cannot be built.
    """
    try:
        return registry.build({**deepcopy(dict(config)), **more})
    except Exception as error:
        for part_registry, part, part_key in parts(registry, config, key):
            build(part_registry, part, part_key)
        raise ConfigError(explained(registry, config, key, error)) from error


def parts(
    registry: Registry, config: Any, key: str
) -> Iterator[tuple[Registry, Any, str]]:
    """Parts of ``config`` that are built on their own; registries and keys."""
    for name in PARTS:
        value = config.get(name)
        steps = TRANSFORMS if name in ("pipeline", "transforms") else registry
        for part, where in flattened(value, f"{key}.{name}"):
            yield steps, part, where


def flattened(value: Any, key: str) -> Iterator[tuple[Any, str]]:
    """Configs with a ``type`` in a value or in the lists that it is made of."""
    if isinstance(value, dict) and "type" in value:
        yield value, key
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from flattened(item, f"{key}[{index}]")


def check_arguments(registry: Registry, config: Any, key: str) -> None:
    """Raise ConfigError if ``config`` names no class, or an argument that it lacks.

    For what a run builds in a place of its own, such as hooks.
    """
    if not isinstance(config, dict) or "type" not in config:
        return
    try:
        cls = found(registry, config["type"])
    except KeyError as error:
        raise ConfigError(explained(registry, config, key, error)) from error
    accepted = arguments(cls)
    if accepted is None:
        return
    for name in config:
        if name not in (*accepted, "type", "_scope_", *BY_ENGINE):
            wrong = TypeError(f"unexpected keyword argument '{name}'")
            raise ConfigError(explained(registry, config, key, wrong))


BY_ENGINE = ("priority", "convert_to_iter_based", "param_name")  # mmengine takes these


def arguments(cls: Any) -> list[str] | None:
    """Names that a class or function takes; None if it takes any.

    ``**kwargs`` are those of the next class that it inherits from.
    """
    accepted: list[str] = []
    for part in inspect.getmro(cls) if inspect.isclass(cls) else (cls,):
        own = inspect.signature(part).parameters.values()
        accepted += [p.name for p in own]
        if not any(p.kind is p.VAR_KEYWORD for p in own):
            return accepted
    return None


def found(registry: Registry, kind: Any) -> Any:
    """The class that a ``type`` stands for."""
    if not isinstance(kind, str):
        return kind
    cls = registry.get(kind)
    if cls is None:
        raise KeyError(f"{kind} is not in the {registry.name} registry")
    return cls


def explained(registry: Registry, config: Any, key: str, error: Exception) -> str:
    """One line: the key, what is wrong with it, what was perhaps meant."""
    said = one_line(error)
    unexpected = UNEXPECTED.search(said)
    if unexpected and isinstance(error, TypeError):
        name = unexpected[1]
        accepted = arguments(found(registry, config["type"])) or []
        return (
            f"{key}.{name}: {type_name(config)} has no argument {name}"
            f"{meant(name, accepted)}"
        )
    unknown = UNKNOWN.search(said)
    if unknown:
        return f"{key}.type: there is no {unknown[1]}" + meant(
            unknown[1], names(registry)
        )
    return f"{key} ({type_name(config)}): {said}"


def meant(name: str, candidates: list[str]) -> str:
    """The nearest of ``candidates``, as a question."""
    near = get_close_matches(name, candidates, 1, 0.6)
    return f" (did you mean {near[0]}?)" if near else ""


def names(registry: Registry | None) -> list[str]:
    """Everything that a registry and those above it hold."""
    if registry is None:
        return []
    return [*registry.module_dict, *names(registry.parent)]


def type_name(config: Any) -> str:
    """The name of the class of a config, given as text or (in Python) as the class."""
    kind = config.get("type") if isinstance(config, dict) else None
    name = kind if isinstance(kind, str) else getattr(kind, "__name__", "")
    return str(name).rpartition(".")[2]


def one_line(error: BaseException) -> str:
    """What an exception says, without line ends."""
    said = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(said).split()) or type(error).__name__
