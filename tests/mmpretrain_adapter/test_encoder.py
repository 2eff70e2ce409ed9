"""Encoders and datasets of mmpretrain configs, against mmpretrain's own loaders."""

import json

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from paths import REPO
from PIL import Image
from torch import nn

from varcon_plugin.evaluation.features import evaluating
from varcon_plugin.evaluation.images import ImageDataset
from varcon_plugin.mmpretrain.evaluation import (
    MMTransform,
    load_encoder,
    load_splits,
    pooled,
)

BACKBONE = {"type": "ResNet", "depth": 18, "base_channels": 4, "stem_channels": 4}
LOAD, PACK = {"type": "LoadImageFromFile"}, {"type": "PackInputs"}
TEST_STEPS = [
    {"type": "ResizeEdge", "scale": 80, "edge": "short"},
    {"type": "CenterCrop", "crop_size": 70},
]


@pytest.fixture
def config(image_folder, tmp_path):
    """Builds a config file of a classifier, with a checkpoint of it."""

    def build(preprocessor, train_steps=(), **changes):
        def loader(split, steps):
            dataset = {
                "type": "CustomDataset",
                "data_root": str(image_folder / split),
                "pipeline": [LOAD, *steps, PACK],
            }
            sampler = {"type": "DefaultSampler", "shuffle": False}
            return {"batch_size": 3, "num_workers": 0, "dataset": dataset,
                    "sampler": sampler, "persistent_workers": False}  # fmt: skip

        cfg = Config(
            {
                "default_scope": "mmpretrain",
                "model": {
                    "type": "ImageClassifier",
                    "backbone": BACKBONE,
                    "neck": {"type": "GlobalAveragePooling"},
                    "head": {"type": "LinearClsHead", "num_classes": 2,
                             "in_channels": 32},
                },
                "data_preprocessor": preprocessor,
                "train_dataloader": loader("train", train_steps or TEST_STEPS),
                "test_dataloader": loader("val", TEST_STEPS),
            }
            | changes
        )  # fmt: skip
        path = tmp_path / "config.py"
        cfg.dump(path)
        torch.manual_seed(0)
        model = MODELS.build(cfg.model | {"data_preprocessor": preprocessor}).eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean)
        checkpoint = tmp_path / "model.pth"
        torch.save({"state_dict": model.state_dict()}, checkpoint)
        return cfg, model, path, checkpoint

    return build


NORMALIZED = {"mean": [120.0, 110.0, 100.0], "std": [60.0, 50.0, 70.0]}


@pytest.mark.parametrize("to_rgb", [True, False])
def test_features_are_those_of_mmpretrains_test_loop(config, to_rgb):
    cfg, model, path, checkpoint = config({**NORMALIZED, "to_rgb": to_rgb})
    expected, labels = [], []
    for batch in Runner.build_dataloader(cfg.test_dataloader):
        data = model.data_preprocessor(batch)
        expected.append(model.extract_feat(data["inputs"])[-1])
        labels += [int(sample.gt_label) for sample in data["data_samples"]]

    encoder, splits = load_encoder(path, checkpoint), load_splits(path)
    images = torch.stack([*ImageDataset(splits.test.items, encoder.transform)])
    found = encoder.module.eval()(images)
    torch.testing.assert_close(found, torch.cat(expected))
    assert splits.test.labels.tolist() == labels
    assert splits.test.classes == ("n01", "n02")
    assert len(splits.train.items) == 8


@pytest.mark.parametrize("to_rgb", [True, False])
def test_what_corruptions_see_is_rgb(config, image_folder, to_rgb):
    _, _, path, checkpoint = config({**NORMALIZED, "to_rgb": to_rgb})
    transform = load_encoder(path, checkpoint).transform
    red = np.zeros((90, 90, 3), np.uint8)
    red[..., 0] = 255
    assert transform(red).float().mean(dim=(1, 2)).tolist() == [255, 0, 0]


def test_arrays_and_files_give_the_same(config, image_folder):
    _, _, path, checkpoint = config({**NORMALIZED, "to_rgb": True})
    transform = load_encoder(path, checkpoint).transform
    file = sorted((image_folder / "val" / "n01").iterdir())[0]
    from_file, from_array = transform(file), transform(np.array(Image.open(file)))
    difference = (from_file.int() - from_array.int()).abs()
    assert difference.max() <= 2  # two JPEG decoders
    assert "CenterCrop" in repr(transform)


def test_without_test_images_the_crop_of_training_counts(config):
    crop = {"type": "RandomResizedCrop", "scale": 70}
    views = {"type": "MultiView", "num_views": 2, "transforms": [[crop]]}
    none = {"test_dataloader": None}
    _, _, path, checkpoint = config(NORMALIZED, [views], **none)
    transform = load_encoder(path, checkpoint).transform
    assert [step["type"] for step in transform.steps[:2]] == [
        "ResizeEdge",
        "CenterCrop",
    ]
    assert transform(np.zeros((100, 120, 3), np.uint8)).shape == (3, 70, 70)
    with pytest.raises(ValueError, match="has no test_dataloader or val_dataloader"):
        load_splits(path)
    crop["scale"] = 32
    _, _, path, checkpoint = config(NORMALIZED, [views], **none)
    transform = load_encoder(path, checkpoint).transform
    assert transform(np.zeros((100, 100, 3), np.uint8)).shape == (3, 32, 32)
    _, _, path, checkpoint = config(NORMALIZED, [PACK], **none)
    with pytest.raises(ValueError, match="crops to no size"):
        load_encoder(path, checkpoint)


@pytest.mark.parametrize("recipe", ["r18_digits", "speedrun_cifar10"])
def test_embeddings_are_those_of_the_neck(recipe, tmp_path):
    path = REPO / f"configs/varcon_{recipe}.py"
    cfg = Config.fromfile(path)
    model = MODELS.build({**cfg.model, "data_preprocessor": cfg.data_preprocessor})
    model.eval()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "model.pth")
    encoder = load_encoder(path, tmp_path / "model.pth")
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    with evaluating(encoder.module), evaluating(encoder.projection):
        features = encoder.module(images)
        embeddings = encoder.projection(features)
    seen = images.flip(1) if encoder.module.bgr else images
    inputs = model.data_preprocessor({"inputs": seen, "data_samples": None})["inputs"]
    torch.testing.assert_close(embeddings, model.neck(model.backbone(inputs))[-1])
    weights = {k: v for k, v in model.state_dict().items() if k.startswith("backbone")}
    torch.save({"state_dict": weights}, tmp_path / "backbone.pth")
    assert load_encoder(path, tmp_path / "backbone.pth").projection is None


def test_a_checkpoint_of_another_backbone_lists_its_keys(config):
    _, _, path, checkpoint = config(NORMALIZED)
    deeper = {"model.backbone.depth": 34}
    with pytest.raises(ValueError, match=r"missing: layer1\.2\.conv1\.weight"):
        load_encoder(path, checkpoint, deeper)


def test_several_labels_an_image(tmp_path):
    path = tmp_path / "config.py"
    dataset = {"type": "MultiLabelDataset", "ann_file": str(tmp_path / "ann.json")}
    loader = {"dataset": dataset}
    Config({"train_dataloader": loader, "val_dataloader": loader}).dump(path)
    samples = [
        {"img_path": "a", "gt_label": [0, 2]},
        {"img_path": "b", "gt_label": [1]},
    ]
    annotations = {"metainfo": {"classes": ["A", "B", "C"]}, "data_list": samples}
    (tmp_path / "ann.json").write_text(json.dumps(annotations))
    images = load_splits(path).test
    assert images.labels.tolist() == [[1, 0, 1], [0, 1, 0]]
    assert images.classes == ("A", "B", "C")


def test_pooling():
    maps = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(pooled((maps + 1, maps)), maps.mean(dim=(2, 3)))
    assert pooled(torch.ones(2, 3)).shape == (2, 3)
    with pytest.raises(ValueError, match="out_type='cls_token'"):
        pooled(torch.ones(2, 5, 3))


def test_a_pipeline_without_a_loading_step_reads_files(image_folder):
    file = sorted((image_folder / "val" / "n01").iterdir())[0]
    assert MMTransform([PACK], bgr=False)(file).shape == (3, 256, 320)
