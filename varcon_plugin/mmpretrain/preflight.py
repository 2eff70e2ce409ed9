"""Before a run: build what it builds, once and in one process, and say what it will do.

A mistake is one message that names the key of the config.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import FUNCTIONS
from mmpretrain.datasets import CustomDataset
from mmpretrain.registry import (
    DATA_SAMPLERS,
    DATASETS,
    HOOKS,
    METRICS,
    MODELS,
    PARAM_SCHEDULERS,
)
from torch import Tensor

from varcon_plugin.mmpretrain.blame import (
    ConfigError,
    build,
    check_arguments,
    one_line,
    type_name,
)
from varcon_plugin.mmpretrain.check_hooks import check_labels
from varcon_plugin.mmpretrain.checkpoints import load_weights
from varcon_plugin.mmpretrain.datasets import ImageFolder
from varcon_plugin.mmpretrain.unwrap import leaves
from varcon_plugin.self_supervised import SelfSupervisedVarConLoss
from varcon_plugin.training.folders import SPLITS, scan_classes

__all__ = ["Flight", "preflight", "processes"]

TRAIN = "train_dataloader"
MOST_DRAWS = 16  # images, until one is undamaged


class Flight(NamedTuple):
    """What was built.

    Attributes:
        model: in training mode, on the CPU; None for a test.
        dataset: of the training images.
        labels: (N,), their class ids; None where they have not one each.
        inputs: what the model's data preprocessor made of two images.
        embedding_size: D of the embeddings that the head takes; None if not known.
    """

    model: Any
    dataset: Any
    labels: Tensor | None
    inputs: Any
    embedding_size: int | None


def processes() -> int:
    """How many processes the run will have, over all nodes."""
    return int(os.environ.get("VARCON_PROCESSES", os.environ.get("WORLD_SIZE", 1)))


def preflight(cfg: Config, name: str) -> Flight | None:
    """Build datasets, model and what surrounds them; run two images through.

    Args:
        cfg: complete; it is not changed.
        name: ``"train"`` or ``"test"``.

    Raises:
        ConfigError: something cannot be built, does not fit together, or would train
            on nothing.
    """
    check_work_dir(cfg.work_dir)
    needed = ("test",) if name == "test" else ("train", "val", "test")
    datasets = {
        loader: check_dataset(cfg, loader)
        for loader in (f"{kind}_dataloader" for kind in needed)
        if cfg.get(loader) is not None
    }
    check_surroundings(cfg)
    if name == "test":
        return None
    dataset = datasets[TRAIN]
    check_steps(cfg, dataset)
    labelled = type_name(cfg.model) == "VarCon"
    if labelled:
        try:
            check_labels(dataset)
        except ValueError as error:
            raise ConfigError(f"{TRAIN}.dataset: {one_line(error)}") from error
    labels = labels_of(dataset)
    check_label_range(cfg, labels)
    model = build_model(cfg)
    check_load_from(cfg, model)
    images = cfg[TRAIN].get("batch_size", 1) * processes()
    inputs = forward(model, two_images(cfg, dataset, labels), images)
    check_optimizer(cfg, model)
    size = embedding_size(model, inputs)
    latent = getattr(latent_loss(model), "pseudo_labels", None)
    if latent is not None and size not in (None, latent.dim):
        raise ConfigError(
            f"model.head.loss.pseudo_labels.dim: {latent.dim}, but the embeddings have "
            f"{size} dimensions"
        )
    return Flight(model, dataset, labels, inputs, size)


def check_work_dir(work_dir: str) -> None:
    """Raise ConfigError unless files can be written to ``work_dir``."""
    path = Path(work_dir).expanduser().absolute()
    above = next(folder for folder in (path, *path.parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        raise ConfigError(
            f"work_dir {work_dir} cannot be written: {error.strerror}"
        ) from error


def check_dataset(cfg: Config, loader: str) -> Any:
    """The dataset of ``loader``, whose first image passes its pipeline."""
    key = f"{loader}.dataset"
    dataset = build(DATASETS, cfg[loader]["dataset"], key)
    if len(dataset) == 0:
        raise ConfigError(f"{key}: it holds no images")
    for leaf in leaves(dataset):
        check_folder(leaf, key)
        run_pipeline(leaf, key)
    return dataset


def check_folder(dataset: Any, key: str) -> None:
    """Raise ConfigError for folders of classes that mmpretrain reads wrongly."""
    of_folders = isinstance(dataset, CustomDataset) and not dataset.ann_file
    if not of_folders or not dataset.with_label or "://" in dataset.img_prefix:
        return
    root = dataset.img_prefix.rstrip("/")
    if not isinstance(dataset, ImageFolder):
        try:
            files = scan_classes(root, suffixes=dataset.extensions).files
        except ValueError as error:
            raise ConfigError(f"{key}: {error}") from error
        if len(files) != len(dataset):
            raise ConfigError(
                f"{key}: {type(dataset).__name__} lists {len(dataset)} images in "
                f"{root}, where there are {len(files)}"
            )
    names = {name for split in SPLITS.values() for name in split}
    if set(dataset.CLASSES or ()) <= names:
        raise ConfigError(
            f"{key}: its classes would be the splits {', '.join(dataset.CLASSES)} of "
            f"{root}: name one of them with {key}.data_prefix"
        )


def run_pipeline(dataset: Any, key: str) -> None:
    """Take the first image through the pipeline; name the step that fails."""
    steps = getattr(getattr(dataset, "pipeline", None), "transforms", None)
    if steps is None or not hasattr(dataset, "get_data_info") or len(dataset) == 0:
        return
    for index in range(min(MOST_DRAWS, len(dataset))):
        sample = dataset.get_data_info(index)
        about = sample.get("img_path", f"sample {index}")
        for number, step in enumerate(steps):
            try:
                sample = step(sample)
            except Exception as error:
                raise ConfigError(
                    f"{key}.pipeline[{number}] ({type(step).__name__}) fails on "
                    f"{about}: {one_line(error)}"
                ) from error
            if sample is None:
                break
        if sample is not None:
            return


def check_steps(cfg: Config, dataset: Any) -> None:
    """Raise ConfigError if an epoch has no step."""
    loader = cfg[TRAIN]
    images = -(-len(dataset) // processes())
    if loader.get("drop_last") and images < loader.get("batch_size", 1):
        raise ConfigError(
            f"{TRAIN}.batch_size: {loader['batch_size']} is more than the {images} "
            "images that each process has, so that an epoch has no step (drop_last)"
        )


def labels_of(dataset: Any) -> Tensor | None:
    """Class ids of all images; None where they are not single numbers."""
    if not hasattr(dataset, "get_data_info"):
        return None
    labels = []
    for index in range(len(dataset)):
        label = dataset.get_data_info(index).get("gt_label")
        if label is None or isinstance(label, list | tuple):
            return None
        labels.append(int(label))
    return torch.tensor(labels)


def check_label_range(cfg: Config, labels: Tensor | None) -> None:
    """Raise ConfigError for labels that the model has no place for."""
    if labels is None:
        return
    for key, value in class_counts(cfg.model.get("head") or {}, "model.head"):
        if int(labels.max()) >= value:
            raise ConfigError(
                f"{key}: {value}, but the labels of {TRAIN}.dataset reach "
                f"{int(labels.max())}"
            )


def class_counts(config: Any, key: str) -> Iterator[tuple[str, int]]:
    """Every ``num_classes`` of labels in a config, with its key."""
    for name, value in config.items():
        if name == "num_classes" and isinstance(value, int):
            yield f"{key}.{name}", value
        elif isinstance(value, dict) and name != "pseudo_labels":
            yield from class_counts(value, f"{key}.{name}")


def build_model(cfg: Config) -> Any:
    """The model as mmengine's runner builds it, able to run on the CPU."""
    config = dict(cfg.model)
    if cfg.get("data_preprocessor") is not None:
        config.setdefault("data_preprocessor", cfg.data_preprocessor)
    return revert_sync_batchnorm(build(MODELS, config, "model")).train()


def check_load_from(cfg: Config, model: Any) -> None:
    """Raise ConfigError if ``load_from`` is of another network."""
    if not cfg.get("load_from") or cfg.get("resume"):
        return
    try:
        weights = load_weights(cfg.load_from)
    except FileNotFoundError as error:
        raise ConfigError(f"load_from: not found: {cfg.load_from}") from error
    own = model.state_dict()
    wrong = [
        name
        for name, value in own.items()
        if name in weights and weights[name].shape != value.shape
    ]
    missing = [n for n in own if n.startswith("backbone.") and n not in weights]
    if wrong or missing:
        problem = "has other shapes for" if wrong else "lacks"
        names = wrong or missing
        raise ConfigError(
            f"load_from: {cfg.load_from} {problem} {len(names)} of the model's "
            f"{len(own)} entries, such as {names[0]}: it is of another network"
        )


def two_images(cfg: Config, dataset: Any, labels: Tensor | None) -> Any:
    """Two collated samples, of two classes if there are."""
    other = len(dataset) - 1
    if labels is not None and bool((labels != labels[0]).any()):
        other = int((labels != labels[0]).nonzero()[0])
    config = dict(cfg[TRAIN].get("collate_fn") or {"type": "pseudo_collate"})
    kind = config.pop("type")
    function = FUNCTIONS.get(kind) if isinstance(kind, str) else kind
    if function is None:
        raise ConfigError(f"{TRAIN}.collate_fn.type: there is no {kind}")
    try:
        return partial(function, **config)([dataset[0], dataset[other]])
    except Exception as error:
        raise ConfigError(f"{TRAIN}.collate_fn: {one_line(error)}") from error


def forward(model: Any, batch: Any, images: int) -> Any:
    """The model's inputs, after a forward pass that names the part that fails."""
    try:
        data = model.data_preprocessor(batch, True)
    except Exception as error:
        raise ConfigError(f"data_preprocessor: {one_line(error)}") from error
    with torch.no_grad(), latent_classes_aside(model, images, data["inputs"]):
        try:
            model._run_forward(data, mode="loss")
        except Exception as error:
            raise ConfigError(culprit(model, data["inputs"], error)) from error
    return data["inputs"]


def latent_loss(model: Any) -> SelfSupervisedVarConLoss | None:
    """The loss for images without labels, if the model has it."""
    loss = getattr(getattr(model, "head", None), "loss_module", None)
    return loss if isinstance(loss, SelfSupervisedVarConLoss) else None


@contextmanager
def latent_classes_aside(model: Any, images: int, inputs: Any) -> Iterator[None]:
    """Leave out latent classes, which two images cannot fill.

    Raises:
        ConfigError: nor can a batch of so many images.
    """
    loss = latent_loss(model)
    if loss is None:
        yield
        return
    try:
        loss.check_batch(images, len(inputs) if isinstance(inputs, list) else 1)
    except ValueError as error:
        raise ConfigError(f"model.head.loss: {one_line(error)}") from error
    kept, loss.pseudo_labels = loss.pseudo_labels, None
    try:
        yield
    finally:
        loss.pseudo_labels = kept


def culprit(model: Any, inputs: Any, error: Exception) -> str:
    """Which part of a model does not fit the one before it."""
    value: Any = inputs[0] if isinstance(inputs, list | tuple) else inputs
    before = "the images"
    for name in ("backbone", "neck"):
        part = getattr(model, name, None)
        if part is None:
            continue
        given = shape(value)
        try:
            value = part(value)
        except Exception as reason:
            return f"model.{name} does not take {given} of {before}: {one_line(reason)}"
        before = f"model.{name}"
    return f"model.head does not take {shape(value)} of {before}: {one_line(error)}"


def embedding_size(model: Any, inputs: Any) -> int | None:
    """D of what backbone and neck make of the first view."""
    value = inputs[0] if isinstance(inputs, list | tuple) else inputs
    with torch.no_grad():
        for name in ("backbone", "neck"):
            part = getattr(model, name, None)
            value = value if part is None else part(value)
    value = value[-1] if isinstance(value, list | tuple) else value
    return int(value.shape[1]) if isinstance(value, Tensor) else None


def shape(value: Any) -> str:
    """The shape of a tensor, of the last of several."""
    value = value[-1] if isinstance(value, list | tuple) else value
    return str(tuple(value.shape)) if isinstance(value, Tensor) else repr(type(value))


def check_optimizer(cfg: Config, model: Any) -> None:
    """Raise ConfigError if the optimizer cannot be built for the model."""
    config = cfg.get("optim_wrapper") or {}
    kept = ("optimizer", "paramwise_cfg", "constructor")
    plain = {name: config[name] for name in kept if config.get(name) is not None}
    if "optimizer" not in plain:
        return
    try:
        build_optim_wrapper(model, Config({"it": {**plain, "type": "OptimWrapper"}}).it)
    except Exception as error:
        raise ConfigError(f"optim_wrapper.optimizer: {one_line(error)}") from error


def check_surroundings(cfg: Config) -> None:
    """Raise ConfigError for types and arguments that hooks and the like do not have."""
    for name, hook in (cfg.get("default_hooks") or {}).items():
        check_arguments(HOOKS, hook, f"default_hooks.{name}")
    several = {
        "custom_hooks": HOOKS,
        "param_scheduler": PARAM_SCHEDULERS,
        "val_evaluator": METRICS,
        "test_evaluator": METRICS,
    }
    for key, registry in several.items():
        value = cfg.get(key) or []
        if isinstance(value, dict):
            check_arguments(registry, value, key)
            continue
        for index, item in enumerate(value):
            check_arguments(registry, item, f"{key}[{index}]")
    for kind in ("train", "val", "test"):
        loader = cfg.get(f"{kind}_dataloader") or {}
        sampler = loader.get("sampler")
        check_arguments(DATA_SAMPLERS, sampler, f"{kind}_dataloader.sampler")
