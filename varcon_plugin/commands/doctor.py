"""Versions, devices, what is fast here and what is missing, for a bug report.

    varcon doctor

Prints Markdown. Nothing is sent anywhere, and no path or user name is in it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import resource
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch

import varcon_plugin
from varcon_plugin.commands.benchmarks.report import processor
from varcon_plugin.commands.noise import quiet_start
from varcon_plugin.training.precision import has_bfloat16

__all__ = ["main", "report"]

DISTRIBUTIONS = {  # extra: what it brings, as named on the package index
    "core": ("torch", "numpy"),
    "mmpretrain": ("onedl-mmengine", "onedl-mmcv", "onedl-mmpretrain"),
    "lightly": ("lightly", "pytorch-lightning", "timm", "torchvision"),
    "eval": ("scikit-learn", "scipy", "matplotlib", "rich", "safetensors"),
    "recipes": ("simplejpeg", "pytorch-metric-learning", "tensorboard"),
}
INSTEAD = {  # other distributions of the same modules
    "onedl-mmengine": ("mmengine",),
    "onedl-mmcv": ("mmcv", "mmcv-lite"),
    "onedl-mmpretrain": ("mmpretrain",),
    "pytorch-lightning": ("lightning",),
}
MODULES = ("varcon_plugin.mmpretrain", "varcon_plugin.lightly")
SHARED_MEMORY = Path("/dev/shm")
ENOUGH_SHARED_MEMORY = 8 * 2**30  # bytes; data workers hand batches over there
ENOUGH_FILES = 4096


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    print(report())


def report() -> str:
    """Everything, in Markdown."""
    sections = {
        "versions": versions(),
        "devices": devices(),
        "speed": speed(),
        "to look at": [*imports(), *limits()] or ["nothing"],
    }
    parts = ["# varcon doctor"]
    for title, lines in sections.items():
        parts.append(f"## {title}\n\n" + "\n".join(f"- {line}" for line in lines))
    return "\n\n".join(parts)


def versions() -> Iterator[str]:
    """Of the interpreter, of this package and of what its extras bring."""
    yield f"varcon-plugin {varcon_plugin.__version__}"
    yield f"Python {platform.python_version()}, {platform.platform()}"
    for extra, names in DISTRIBUTIONS.items():
        yield f"{extra}: " + ", ".join(installed(name) for name in names)


def installed(name: str) -> str:
    """A distribution and its version, or that of another with the same modules."""
    for candidate in (name, *INSTEAD.get(name, ())):
        try:
            found: Any = distribution(candidate)  # its version is untyped
            return f"{candidate} {found.version}"
        except PackageNotFoundError:
            continue
    return f"{name} missing"


def devices() -> Iterator[str]:
    """The processor, and every GPU that torch can use."""
    cores = len(os.sched_getaffinity(0))
    yield f"CPU: {processor()}, {cores} cores to use"
    yield f"torch uses {torch.get_num_threads()} threads"
    if not torch.cuda.is_available():
        yield f"no GPU that torch can use (built for CUDA {torch.version.cuda})"
        return
    cudnn: Any = torch.backends.cudnn  # untyped upstream
    yield f"CUDA {torch.version.cuda}, cuDNN {cudnn.version()}"
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        capability = f"{about.major}.{about.minor}"
        memory = about.total_memory / 2**30
        yield f"GPU {index}: {about.name}, {memory:.0f} GiB, capability {capability}"


def speed() -> Iterator[str]:
    """What makes a step fast, and whether it is there."""
    yield "CPU mixed precision: " + (
        "bfloat16 in hardware"
        if has_bfloat16("cpu")
        else "no bfloat16 in hardware: float32"
    )
    backend: Any = torch.backends.mkldnn  # untyped upstream
    onednn = backend.is_available() and backend.enabled
    yield f"oneDNN for large float32 products on the CPU: {'yes' if onednn else 'no'}"
    decoder = "simplejpeg missing" not in installed("simplejpeg")
    yield "strict and fast JPEG decoder: " + (
        "yes" if decoder else "no, install simplejpeg"
    )
    if torch.cuda.is_available():
        allowed = torch.backends.cuda.matmul.allow_tf32
        yield f"TF32 products: {'on' if allowed else 'off'}"
        backends = torch.distributed.is_nccl_available()
        yield f"NCCL: {'yes' if backends else 'no'}"


def imports() -> Iterator[str]:
    """Why a door cannot be entered."""
    for name in MODULES:
        try:
            with quiet_start():
                importlib.import_module(name)
        except ImportError as error:
            extra = name.rpartition(".")[2]
            yield (
                f"{name} does not import ({error}); "
                f'pip install "varcon-plugin[{extra}]" brings what it needs'
            )


def limits() -> Iterator[str]:
    """Limits of this machine that long runs hit."""
    if SHARED_MEMORY.is_dir():
        size = shutil.disk_usage(SHARED_MEMORY).total
        if size < ENOUGH_SHARED_MEMORY:
            yield (
                f"{SHARED_MEMORY} holds {size / 2**30:.1f} GiB: data workers of a "
                "large recipe want more (docker run --shm-size=16g)"
            )
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < ENOUGH_FILES:
        yield f"at most {files} open files: many data workers want more (ulimit -n)"
    if shutil.which("torchrun") is None:
        yield f"no torchrun on PATH; it lies beside {Path(sys.executable).name}"
