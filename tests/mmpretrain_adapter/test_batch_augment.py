"""Crops in the workers, augmentation in the data preprocessor, inside mmpretrain."""

import shutil
from pathlib import Path

import mmpretrain
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import MODELS as ENGINE_MODELS
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS, MODELS, TRANSFORMS
from PIL import Image
from sklearn.datasets import load_sample_image

import varcon_plugin.mmpretrain
from varcon_plugin.mmpretrain import BatchAugmentDataPreprocessor, EpochSeedHook
from varcon_plugin.training.batch_augment import BatchAugment

NORMALISE = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
OFF = {"flip_prob": 0, "jitter_prob": 0, "grayscale_prob": 0, "blur_prob": 0}
SIMCLR = Path(mmpretrain.__file__).parent / (
    ".mim/configs/_base_/datasets/imagenet_bs32_simclr.py"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight JPEGs of two classes."""
    root = tmp_path_factory.mktemp("images")
    for label, name in enumerate(("china.jpg", "flower.jpg")):
        (root / str(label)).mkdir()
        for index in range(4):
            corner = 40 * index
            crop = load_sample_image(name)[corner : corner + 90, corner : corner + 120]
            Image.fromarray(crop).save(root / str(label) / f"{index}.jpg", quality=95)
    return root


def dataset_config(folder, **crops):
    pipeline = [
        {"type": "TwoCrops", "scale": 32, **crops},
        {"type": "PackInputs"},
    ]
    return {"type": "CustomDataset", "data_root": str(folder), "pipeline": pipeline}


@ENGINE_MODELS.register_module()
class RecordViews(BaseModel):
    """Keeps what the preprocessor hands over."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def forward(self, inputs, data_samples, mode):
        labels = torch.cat([sample.gt_label for sample in data_samples])
        self.seen.append((torch.stack(inputs), labels))
        return {"loss": self.weight * 0}


class RestartMeans(Hook):
    """Another consumer of random numbers in the training process."""

    def after_train_iter(self, runner, *args, **kwargs):
        torch.rand(runner.iter)


def train(
    folder, work_dir, *, epochs, resume=None, workers=2, seed=3, hooks=True, **crops
):
    """The views of every iteration of a run."""
    seed_hook = {"epoch_seed": {"type": "mmpretrain.EpochSeedHook"}} if hooks else {}
    runner = Runner(
        model={
            "type": "RecordViews",
            "data_preprocessor": {
                "type": "mmpretrain.BatchAugmentDataPreprocessor",
                **NORMALISE,
            },
        },
        work_dir=str(work_dir),
        train_dataloader={
            "batch_size": 4,
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "sampler": {"type": "DefaultSampler", "shuffle": True},
            "collate_fn": {"type": "default_collate"},
            "dataset": dataset_config(folder, **crops),
        },
        train_cfg={"by_epoch": True, "max_epochs": epochs},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.1}},
        default_hooks={
            "checkpoint": {"type": "CheckpointHook", "interval": 1},
            **seed_hook,
        },
        custom_hooks=[RestartMeans()] if resume else [],
        load_from=resume,
        resume=resume is not None,
        randomness={"seed": seed},
        default_scope="mmpretrain",
        experiment_name=f"{Path(work_dir)}-{epochs}-{seed}",
        log_level="ERROR",
    )
    runner.train()
    if workers:
        runner.train_dataloader._iterator = None  # stops them; gc takes ten seconds
    return runner.model.seen


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b)
        for x, y in zip(one, other, strict=True)
        for a, b in zip(x, y, strict=True)
    )


def test_everything_is_registered_for_configs():
    assert MODELS.get("BatchAugmentDataPreprocessor") is BatchAugmentDataPreprocessor
    assert TRANSFORMS.get("TwoCrops") is varcon_plugin.mmpretrain.TwoCrops


def test_defaults_are_the_stock_recipe():
    """Every number of mmpretrain's SimCLR pipeline is a default here."""
    config = Config.fromfile(SIMCLR)
    crop, flip, jitter, gray, blur = config.view_pipeline
    (colour,) = jitter.transforms
    augment = BatchAugment()
    assert augment.probabilities == {
        "flip_prob": flip.prob,
        "jitter_prob": jitter.prob,
        "grayscale_prob": gray.prob,
        "blur_prob": blur.prob,
    }
    assert augment.blur_sigma == tuple(blur.magnitude_range)
    assert augment.ranges == [
        (max(0, 1 - colour.brightness), 1 + colour.brightness),
        (max(0, 1 - colour.contrast), 1 + colour.contrast),
        (max(0, 1 - colour.saturation), 1 + colour.saturation),
        (-colour.hue, colour.hue),
    ]
    ours = TRANSFORMS.build({"type": "TwoCrops", "scale": crop.scale})
    theirs = TRANSFORMS.build(crop)
    assert ours.crops.size == theirs.scale
    assert ours.crops.scale == theirs.crop_ratio_range
    assert ours.crops.ratio == theirs.aspect_ratio_range
    assert ours.crops.num_views == config.train_pipeline[1].num_views


def test_colours_are_those_of_the_stock_pipeline(folder):
    """Without crop and augmentation both paths hand the model the same RGB pixels."""
    path = str(next((folder / "0").glob("*.jpg")))
    stock = [{"type": "LoadImageFromFile"}, {"type": "PackInputs"}]
    whole = {"crop_ratio_range": (1, 1), "aspect_ratio_range": (4 / 3, 4 / 3)}
    ours = dataset_config(folder, scale=(90, 120), **whole)["pipeline"]
    batches = []
    for pipeline in (stock, ours):
        sample = {"img_path": path, "gt_label": 0}
        for step in pipeline:
            sample = TRANSFORMS.build(step)(sample)
        batches.append(default_collate([sample]))
    theirs = MODELS.build(
        {"type": "SelfSupDataPreprocessor", "to_rgb": True, **NORMALISE}
    )(batches[0])
    preprocessor = BatchAugmentDataPreprocessor(**NORMALISE, **OFF)
    views = preprocessor(batches[1], training=True)["inputs"]
    assert len(views) == 2
    for view in views:  # decoders round differently: a level or two
        assert (view - theirs["inputs"]).abs().max() * 57 < 3.5
    evaluated = preprocessor(batches[0], training=False)
    assert torch.equal(evaluated["inputs"], theirs["inputs"])


def test_images_in_memory_are_cropped_too():
    step = TRANSFORMS.build(
        {"type": "TwoCrops", "scale": 4, "crop_ratio_range": (1, 1)}
    )
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    views = step({"img": image, "gt_label": 1})["img"]
    assert views.shape == (2, 4, 4, 3)
    assert np.array_equal(views[0].numpy(), image)


def test_small_views_reach_the_model_in_their_own_size(folder):
    crops = {"num_views": 1, "small_views": 2, "small_scale": 16}
    dataset = DATASETS.build(dataset_config(folder, **crops))
    batch = default_collate([dataset[0], dataset[1]])
    preprocessor = MODELS.build(
        {
            "type": "BatchAugmentDataPreprocessor",
            "mean": [0.0] * 3,
            "std": [1.0] * 3,
            **OFF,
        }
    )
    views = preprocessor(batch, training=True)["inputs"]
    assert [tuple(v.shape) for v in views] == [(2, 3, 32, 32), *[(2, 3, 16, 16)] * 2]
    large, small = batch["inputs"]
    expected = [large[:, 0], small[:, 0], small[:, 1]]
    for view, pixels in zip(views, expected, strict=True):
        torch.testing.assert_close(view, pixels.flip(-1).permute(0, 3, 1, 2).float())


def test_labels_and_views_stay_together(folder, tmp_path):
    (views, labels), *_ = train(folder, tmp_path, epochs=1, workers=0)
    assert views.shape == (2, 4, 3, 32, 32)
    assert views.dtype == torch.float32
    assert labels.shape == (4,)


def test_a_resumed_run_sees_what_the_uninterrupted_one_sees(folder, tmp_path):
    whole = train(folder, tmp_path / "whole", epochs=3)
    train(folder, tmp_path / "part", epochs=2)
    rest = train(
        folder,
        tmp_path / "part",
        epochs=3,
        resume=str(tmp_path / "part" / "epoch_2.pth"),
    )
    assert same(rest, whole[4:])
    assert not same(whole[:2], whole[2:4])


def test_the_seed_decides(folder, tmp_path):
    first = train(folder, tmp_path / "a", epochs=1)
    assert same(first, train(folder, tmp_path / "b", epochs=1))
    assert not same(first, train(folder, tmp_path / "c", epochs=1, seed=4))


def test_ranks_augment_differently(folder, tmp_path, monkeypatch):
    first = train(folder, tmp_path / "a", epochs=1, workers=0)
    monkeypatch.setattr(varcon_plugin.mmpretrain.epoch_seed_hook, "get_rank", lambda: 1)
    second = train(folder, tmp_path / "b", epochs=1, workers=0)
    assert torch.equal(first[0][1], second[0][1])  # the sampler is not what differs
    assert not same(first, second)


def test_seeds_are_found_in_wrapped_datasets(folder):
    config = dataset_config(folder)
    wrapped = DATASETS.build(
        {
            "type": "RepeatDataset",
            "times": 2,
            "dataset": {"type": "ConcatDataset", "datasets": [config, config]},
        }
    )
    assert (
        len(list(varcon_plugin.mmpretrain.epoch_seed_hook.worker_seeds(wrapped))) == 2
    )


def damage(folder, root, *names):
    """A copy of ``folder`` with damaged files."""
    for path in folder.rglob("*.jpg"):
        target = root / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes()
        target.write_bytes(
            data[: len(data) // 2] if str(path.relative_to(folder)) in names else data
        )
    return root


def test_damaged_files_do_not_end_a_run(folder, tmp_path):
    broken = damage(folder, tmp_path / "images", "0/1.jpg", "1/3.jpg")
    seen = train(broken, tmp_path / "run", epochs=3)
    assert len(seen) == 6
    (log,) = (tmp_path / "run").rglob("*.log")  # two workers write to it
    lines = [x for x in log.read_text().splitlines() if "cannot be used" in x]
    assert len(lines) == 2
    assert any("0/1.jpg" in line for line in lines)
    assert any("1/3.jpg" in line for line in lines)


def test_too_many_damaged_files_end_it(folder, tmp_path):
    broken = damage(folder, tmp_path / "images", "0/1.jpg", "1/3.jpg")
    with pytest.raises(RuntimeError, match="more than 1 images are damaged"):
        train(broken, tmp_path / "run", epochs=3, workers=0, max_corrupt=1)


def test_views_that_are_augmented_already_are_refused():
    preprocessor = BatchAugmentDataPreprocessor(**NORMALISE)
    views = [torch.zeros(2, 3, 8, 8, dtype=torch.uint8)] * 2
    with pytest.raises(ValueError, match=r"got a list of 2; views from MultiView"):
        preprocessor({"inputs": views, "data_samples": []}, training=True)


def test_datasets_that_hold_rgb_keep_it():
    image = torch.arange(24, dtype=torch.uint8).reshape(1, 1, 2, 4, 3)
    for to_rgb in (True, False):
        preprocessor = BatchAugmentDataPreprocessor(to_rgb=to_rgb, **OFF)
        (view,) = preprocessor({"inputs": image, "data_samples": []}, True)["inputs"]
        expected = image[0].flip(-1) if to_rgb else image[0]
        assert torch.equal(view.permute(0, 2, 3, 1), expected.float())


def test_the_hook_leaves_stock_pipelines_alone(folder, tmp_path):
    assert EpochSeedHook.priority == "NORMAL"
    assert len(train(folder, tmp_path, epochs=1, workers=0, hooks=False)) == 2


def test_kept_images_are_read_once(image_folder, tmp_path):
    file = tmp_path / "0.JPEG"
    shutil.copy(next((image_folder / "train" / "n01").iterdir()), file)
    whole = {"scale": 8, "crop_ratio_range": (1, 1), "aspect_ratio_range": (1, 1)}
    keeps = TRANSFORMS.build({"type": "TwoCrops", "keep": True, **whole})
    reads = TRANSFORMS.build({"type": "TwoCrops", **whole})
    first = keeps({"img_path": str(file)})["img"]
    assert torch.equal(first, reads({"img_path": str(file)})["img"])
    file.unlink()
    assert torch.equal(keeps({"img_path": str(file)})["img"], first)
    assert reads({"img_path": str(file)}) is None
