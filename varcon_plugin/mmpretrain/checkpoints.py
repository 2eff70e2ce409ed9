"""mmengine reads checkpoints as data alone: on import its loaders get our reader.

Its own reader runs what a file holds where that is no data, and whatever a download
holds. ``resume``, ``load_from``, ``init_cfg``, tools/test.py and
``mmpretrain.get_model`` all read through the module whose names are replaced here.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, checkpoint
from torch import Tensor
from torch.hub import download_url_to_file, get_dir

from varcon_plugin.checkpoints.plain import LogBuffer
from varcon_plugin.checkpoints.reading import (
    CheckpointError,
    File,
    named_weights,
    read_checkpoint,
)

__all__ = ["load_weights", "read_as_data", "with_dot"]


def read_as_data() -> None:
    """Replace the functions with which mmengine's loaders unpickle.

    They are ``torch.load``, the maintained fork's wrapper of it (which puts names on
    torch's list meanwhile), and torch's download.
    """
    checkpoint.torch = _Torch("torch")
    checkpoint._safe_torch_load = _load
    checkpoint.load_url = _load_url


def load_weights(path: str) -> dict[str, Tensor]:
    """The weights that mmengine finds at ``path``, by name, on the CPU.

    Args:
        path: of a file, or as mmengine takes it: ``https://``, ``torchvision://``, ...

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: as `varcon_plugin.checkpoints.reading.load_state_dict`.
    """
    return named_weights(CheckpointLoader.load_checkpoint(path, "cpu", "silent"), path)


def with_dot(prefix: str) -> str:
    """A prefix of ``init_cfg`` as mmengine takes it: ``backbone`` is ``backbone.``."""
    return f"{prefix.removesuffix('.')}." if prefix else ""


class _Torch(ModuleType):
    """``torch`` as mmengine's loaders see it: with a ``load`` of ours."""

    def __getattr__(self, name: str) -> Any:
        return _load if name == "load" else getattr(torch, name)


def _load(file: File, map_location: Any = None, **_: Any) -> Any:
    """`read_checkpoint` with the log buffers that mmengine expects.

    mmengine acts on two texts: it executes ``meta.config`` as Python, which is left
    out, and deletes the file or folder that ``best_ckpt`` names once there is a better
    one, so that has to be a best checkpoint in the folder of ``file``.
    """
    content = read_checkpoint(file, map_location)
    meta, hub = (_part(content, name) for name in ("meta", "message_hub"))
    meta.pop("config", None)
    scalars = _part(hub, "log_scalars")
    for name, value in scalars.items():
        if isinstance(value, LogBuffer):
            scalars[name] = HistoryBuffer(*value)
    info = _part(hub, "runtime_info")
    for name in [name for name in info if str(name).startswith("best_ckpt")]:
        best = _beside(file, info.pop(name))
        if best is not None:
            info[name] = best
    return content


def _part(content: Any, name: str) -> dict[str, Any]:
    """A dict in another, empty where there is none."""
    part = content.get(name) if isinstance(content, dict) else None
    return part if isinstance(part, dict) else {}


def _beside(file: File, path: Any) -> str | None:
    """Where the best checkpoint of ``path`` is: in the folder of the one that says so.

    None if it is none.
    """
    if not isinstance(path, str) or not isinstance(file, str | Path):
        return None
    name = Path(path).name
    return str(Path(file).parent / name) if name.startswith("best_") else None


def _load_url(
    url: str,
    model_dir: str | None = None,
    map_location: Any = None,
    progress: bool = True,
) -> Any:
    """Download to where torch keeps its downloads, unless it is there; read it."""
    folder = Path(model_dir or Path(get_dir()) / "checkpoints")
    file = folder / Path(urlparse(url).path).name
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            download_url_to_file(url, str(file), progress=progress)
        except (URLError, OSError) as error:
            raise CheckpointError(f"cannot download {url}: {error}") from error
    return _load(file, map_location)
