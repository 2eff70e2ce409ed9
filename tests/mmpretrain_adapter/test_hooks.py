from types import SimpleNamespace

import pytest
import torch
from mmpretrain.registry import DATASETS, MODELS

from varcon_plugin import MomentumCentroids, VarConLoss
from varcon_plugin.mmpretrain import LabelCheckHook, PretrainedCheckHook


def runner_of(dataset, **loss):
    loader = SimpleNamespace(dataset=dataset)
    return SimpleNamespace(train_dataloader=loader, model=VarConLoss(**loss))


def digits(*pipeline):
    return DATASETS.build({"type": "Digits", "pipeline": list(pipeline)})


def test_labels_that_arrive_pass():
    LabelCheckHook().before_train(runner_of(digits({"type": "PackInputs"})))


@pytest.mark.parametrize(
    "loss",
    [{"num_classes": 9}, {"centroids": MomentumCentroids(9, 4)}],
    ids=["batch", "bank"],
)
def test_labels_that_the_loss_does_not_know_end_the_run_before_it_starts(loss):
    dataset = digits({"type": "PackInputs"})
    with pytest.raises(ValueError, match=r"of Digits are 0 to 9, .* num_classes=9"):
        LabelCheckHook().before_train(runner_of(dataset, **loss))
    LabelCheckHook().before_train(runner_of(dataset, num_classes=10))


def test_a_dataset_without_labels_is_named(image_folder):
    dataset = DATASETS.build(
        {"type": "CustomDataset", "data_root": str(image_folder), "with_label": False,
         "data_prefix": "train"}
    )  # fmt: skip
    with pytest.raises(ValueError, match="CustomDataset has no gt_label"):
        LabelCheckHook().before_train(runner_of(dataset))


def test_the_step_that_loses_the_label_is_named():
    class Forgetful:
        def __call__(self, results):
            return {"img": results["img"]}

    dataset = digits({"type": "Resize", "scale": 16}, {"type": "PackInputs"})
    dataset.pipeline.transforms.insert(1, Forgetful())
    with pytest.raises(ValueError, match="step Forgetful of the training dataset Dig"):
        LabelCheckHook().before_train(runner_of(dataset))


@pytest.fixture
def pretrained(tmp_path):
    """A backbone that has been filled from the checkpoint it names."""
    path = tmp_path / "checkpoint.pth"
    backbone = MODELS.build({"type": "ResNet_CIFAR", "depth": 18, "base_channels": 8,
                             "stem_channels": 8})  # fmt: skip
    state = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    torch.save({"state_dict": state}, path)
    init_cfg = {"type": "Pretrained", "checkpoint": str(path), "prefix": "backbone."}
    backbone.init_cfg = init_cfg
    return SimpleNamespace(model=SimpleNamespace(backbone=backbone))


def test_a_filled_backbone_passes(pretrained):
    PretrainedCheckHook().before_train(pretrained)


def test_a_weight_that_differs_from_the_checkpoint_is_named(pretrained):
    with torch.no_grad():
        pretrained.model.backbone.conv1.weight[0, 0, 0, 0] += 1
    with pytest.raises(ValueError, match=r"1 of \d+ entries .*conv1\.weight"):
        PretrainedCheckHook().before_train(pretrained)


def test_a_prefix_that_matches_nothing_is_an_error(pretrained):
    pretrained.model.backbone.init_cfg["prefix"] = "encoder."
    with pytest.raises(ValueError, match="did not fill the backbone"):
        PretrainedCheckHook().before_train(pretrained)


def test_no_checkpoint_is_an_error(pretrained):
    pretrained.model.backbone.init_cfg["checkpoint"] = ""
    with pytest.raises(ValueError, match=r"init_cfg\.checkpoint is not set"):
        PretrainedCheckHook().before_train(pretrained)
