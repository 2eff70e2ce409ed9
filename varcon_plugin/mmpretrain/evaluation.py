"""What `varcon_plugin.evaluation` needs of mmpretrain: encoders and datasets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from mmpretrain.registry import DATASETS, MODELS, TRANSFORMS
from torch import Tensor, nn

from varcon_plugin.checkpoints.weights import fill, read_weights
from varcon_plugin.evaluation.images import Encoder, Images, Item, Splits
from varcon_plugin.evaluation.sources import normalisation
from varcon_plugin.mmpretrain.blame import type_name
from varcon_plugin.training.decoding import read_image

__all__ = [
    "MMEncoder",
    "MMProjection",
    "MMTransform",
    "load_encoder",
    "load_splits",
    "pooled",
]

NECK = "neck."
LOADERS = ("test_dataloader", "val_dataloader")
REPEATING = ("RepeatDataset", "ClassBalancedDataset")


class MMEncoder(nn.Module):
    """Backbone of a mmpretrain model behind its own data preprocessor.

    Args:
        model: with a ``backbone`` and a ``data_preprocessor``.
        bgr: whether the preprocessor takes BGR images.
    """

    def __init__(self, model: Any, bgr: bool) -> None:
        super().__init__()
        self.backbone: nn.Module = model.backbone
        self.data_preprocessor: nn.Module = model.data_preprocessor
        self.bgr = bgr

    def forward(self, images: Tensor) -> Tensor:
        """Features (N, D) of uint8 RGB ``images`` (N, 3, H, W)."""
        batch = {
            "inputs": images.flip(1) if self.bgr else images,
            "data_samples": None,
        }
        return pooled(self.backbone(self.data_preprocessor(batch)["inputs"]))


def pooled(output: Any) -> Tensor:
    """Features (N, D) of what a mmpretrain backbone returns: of its last stage.

    Raises:
        ValueError: they are neither vectors nor maps.
    """
    features: Tensor = output[-1] if isinstance(output, tuple | list) else output
    if features.ndim == 4:
        features = features.mean(dim=(2, 3))
    if features.ndim != 2:
        raise ValueError(
            f"the backbone returns {tuple(features.shape)}, expected (N, D) or "
            "(N, D, H, W): for a ViT, set out_type='cls_token' or 'avg_featmap'"
        )
    return features


class MMProjection(nn.Module):
    """A neck of mmpretrain behind features that are pooled already.

    Args:
        neck: of a self-supervised model; its own pooling finds one pixel.
    """

    def __init__(self, neck: nn.Module) -> None:
        super().__init__()
        self.neck = neck

    def forward(self, features: Tensor) -> Tensor:
        """Embeddings (N, d) of features (N, D)."""
        embeddings: Tensor = self.neck((features[:, :, None, None],))[-1]
        return embeddings


class MMTransform:
    """A test pipeline of mmpretrain, from an image to a uint8 RGB tensor.

    Args:
        pipeline: configs of the steps. Files are read as everywhere in the evaluation
            (docs/data.md), whichever step of the pipeline loads them.
        bgr: whether the pipeline works on BGR images.
    """

    def __init__(self, pipeline: list[dict[str, Any]], bgr: bool) -> None:
        self.steps = [step for step in pipeline if not is_loader(step)]
        self.bgr = bgr
        self.run = Compose([TRANSFORMS.build(step) for step in self.steps])

    def __call__(self, item: Item) -> Tensor:
        """``item`` as the encoder takes it."""
        if isinstance(item, Path):
            pixels = read_image(item, "BGR" if self.bgr else "RGB")
            image = pixels.permute(1, 2, 0).numpy()
        else:
            image = np.ascontiguousarray(item[..., ::-1]) if self.bgr else item
        shape = image.shape[:2]
        sample = {"img": image, "img_shape": shape, "ori_shape": shape}
        inputs: Tensor = self.run(sample)["inputs"]
        return inputs.flip(0) if self.bgr else inputs

    def __repr__(self) -> str:
        return f"mmpretrain {'BGR' if self.bgr else 'RGB'} {self.steps}"


def load_encoder(
    config: Path, checkpoint: Path, options: dict[str, Any] | None = None
) -> Encoder:
    """The backbone of a config with the weights of a checkpoint.

    Images go through the test (or validation) pipeline of the config. A config without
    one, as for pretraining, gives the (largest) crop of its training pipeline: the
    image is resized to it up to 64 pixels; above, the centre of an image 8/7 as large
    is taken.

    Args:
        config: of any mmpretrain model with a backbone.
        checkpoint: of that model, or of its backbone alone.
        options: overrides, as ``--cfg-options`` gives them.

    Raises:
        ValueError: the checkpoint does not fill the backbone, or no pipeline is found.
    """
    cfg = read_config(config, options)
    model_cfg = cfg.model.to_dict()
    if cfg.get("data_preprocessor") is not None:
        model_cfg.setdefault("data_preprocessor", cfg.data_preprocessor.to_dict())
    model = MODELS.build(model_cfg)
    weights = read_weights(checkpoint)
    fill(model.backbone, weights, str(checkpoint))
    pipeline = test_pipeline(cfg)
    bgr = reads_bgr(cfg) or flips(model.data_preprocessor)
    about = {
        "source": "mmpretrain",
        "model": str(model_cfg["backbone"].get("type")),
        "config": str(config),
        "checkpoint": str(checkpoint),
        "normalisation": normalised(model.data_preprocessor),
    }
    projection = read_projection(getattr(model, "neck", None), weights, checkpoint)
    return Encoder(MMEncoder(model, bgr), MMTransform(pipeline, bgr), about, projection)


def normalised(preprocessor: nn.Module) -> str:
    """What a data preprocessor does to the values, in words."""
    mean, std = getattr(preprocessor, "mean", None), getattr(preprocessor, "std", None)
    if mean is None or std is None:
        return "none: channels stay in [0, 255]"
    return normalisation(*((value.flatten() / 255).tolist() for value in (mean, std)))


def read_projection(
    neck: nn.Module | None, weights: Mapping[str, Tensor], checkpoint: Path
) -> MMProjection | None:
    """The neck with its weights; None if there are none, as where it only pools."""
    own = {name: w for name, w in weights.items() if name.startswith(NECK)}
    if neck is None or not own or not list(neck.parameters()):
        return None
    fill(neck, own, str(checkpoint), "neck")
    return MMProjection(neck)


def load_splits(config: Path, options: dict[str, Any] | None = None) -> Splits:
    """The training and the test (or validation) images of a config.

    Raises:
        ValueError: the config has no test images.
    """
    cfg = read_config(config, options)
    loader = next((cfg[name] for name in LOADERS if cfg.get(name)), None)
    if cfg.get("train_dataloader") is None or loader is None:
        raise ValueError(
            f"{config} has no test_dataloader or val_dataloader, so no test images: "
            "say where they are with --data, which takes a config too, such as that "
            "of the linear evaluation"
        )
    train = read_dataset(cfg.train_dataloader.dataset)
    return Splits(train, read_dataset(loader.dataset), None, config.stem)


def read_config(config: Path, options: dict[str, Any] | None) -> Config:
    """The config with ``options`` merged, its modules imported, its scope set."""
    if not config.is_file():
        raise ValueError(f"config not found: {config}")
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(options or {})
    init_default_scope(cfg.get("default_scope", "mmpretrain"))
    return cfg


def read_dataset(config: dict[str, Any]) -> Images:
    """Files (or arrays) and labels of a dataset config, without its pipeline.

    An image that RepeatDataset or ClassBalancedDataset repeats counts once.
    """
    config = unread(config)
    try:
        dataset = DATASETS.build(config)
    except ValueError as error:  # numpy's, of an empty list
        name = type_name(config)
        message = f"cannot read the dataset {name} (is it empty?): {error}"
        raise ValueError(message) from error
    samples = [dataset.get_data_info(index) for index in range(len(dataset))]
    classes = dataset.metainfo.get("classes")
    labels = [sample["gt_label"] for sample in samples]
    items = [Path(s["img_path"]) if "img_path" in s else s["img"] for s in samples]
    if any(not isinstance(label, int | np.integer) for label in labels):
        hot = torch.zeros(len(labels), len(classes), dtype=torch.int64)
        for row, label in zip(hot, labels, strict=True):
            row[torch.as_tensor(label, dtype=torch.int64)] = 1
        return Images(items, hot, tuple(classes))
    ids = torch.tensor(labels, dtype=torch.int64)
    names = classes or [str(label) for label in range(int(ids.max()) + 1)]
    return Images(items, ids, tuple(names))


def unread(config: dict[str, Any]) -> dict[str, Any]:
    """A dataset config without repetition and pipelines, of the parts of it too."""
    while type_name(config) in REPEATING:
        config = config["dataset"]
    given = {**config}
    if "datasets" in given:
        return {**given, "datasets": [unread(part) for part in given["datasets"]]}
    if "dataset" in given:
        return {**given, "dataset": unread(given["dataset"])}
    return {**given, "pipeline": []}


def test_pipeline(cfg: Config) -> list[dict[str, Any]]:
    """Steps from image to tensor: see `load_encoder`."""
    for name in LOADERS:
        dataset = (cfg.get(name) or {}).get("dataset")
        while dataset and ("dataset" in dataset or "datasets" in dataset):
            dataset = dataset.get("dataset") or dataset["datasets"][0]
        if dataset and dataset.get("pipeline"):
            return [step.to_dict() for step in dataset["pipeline"]]
    crops = find_scales((cfg.get("train_dataloader") or {}).get("dataset", {}))
    if not crops:
        raise ValueError(
            f"{cfg.filename} has no test pipeline, and its training pipeline crops to "
            "no size: give a config with a test_dataloader"
        )
    size = max(crops)  # of several views, the large ones
    resize: list[dict[str, Any]] = [{"type": "Resize", "scale": size}]
    if size > 64:
        resize = [
            {"type": "ResizeEdge", "scale": round(size * 8 / 7), "edge": "short"},
            {"type": "CenterCrop", "crop_size": size},
        ]
    return [*resize, {"type": "PackInputs"}]


def find_scales(config: Any) -> set[int]:
    """Sizes of all random resized crops anywhere in ``config``."""
    if isinstance(config, list | tuple):
        return set().union(*map(find_scales, config))
    if not isinstance(config, dict):
        return set()
    if type_name(config).endswith(("RandomResizedCrop", "TwoCrops")):
        return {int(np.max(config["scale"]))}
    return set().union(*map(find_scales, config.values()))


def is_loader(step: dict[str, Any]) -> bool:
    """Whether a pipeline step reads the image file."""
    name = type_name(step)
    return name.startswith("LoadImage") or name == "TwoCrops"


def reads_bgr(cfg: Config) -> bool:
    """Whether the pipelines of a config read files, which mmcv does as BGR."""

    def search(node: Any) -> bool:
        if isinstance(node, list | tuple):
            return any(map(search, node))
        return isinstance(node, dict) and (
            is_loader(node) or any(map(search, node.values()))
        )

    return any(search(cfg.get(name)) for name in ("train_dataloader", *LOADERS))


def flips(preprocessor: nn.Module) -> bool:
    """Whether a data preprocessor turns BGR into RGB."""
    return bool(
        getattr(preprocessor, "to_rgb", False)
        or getattr(preprocessor, "_channel_conversion", False)
    )
