import pytest
import torch

from varcon_plugin.lightly.backbone import create_backbone, feature_dim

STEMS = ("imagenet", "cifar")


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_vit", "test_efficientnet", "mobilenetv3_small_050"]
)
def test_any_timm_model_returns_pooled_features(name):
    backbone = create_backbone(name, image_size=64).eval()
    features = backbone(torch.zeros(2, 3, 64, 64))
    assert features.shape == (2, feature_dim(backbone))


def test_the_small_network_goes_by_its_name():
    backbone = create_backbone("speedrun", widths=(4, 6))
    assert backbone(torch.zeros(2, 3, 32, 32)).shape == (2, feature_dim(backbone))
    assert feature_dim(backbone) == 6


def test_arguments_reach_timm():
    wide = create_backbone("resnet18", channels=(8, 16, 24, 40))
    assert feature_dim(wide) == 40


def test_cifar_stem_keeps_the_resolution():
    images = torch.zeros(2, 3, 32, 32)
    backbones = {stem: create_backbone("resnet18", stem) for stem in STEMS}
    maps = {s: b.forward_features(images).shape[-1] for s, b in backbones.items()}
    assert maps == {"imagenet": 1, "cifar": 4}


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "resnet10t"])
def test_cifar_stem_needs_a_plain_resnet(name):
    with pytest.raises(ValueError, match=f"'{name}' does not.*stem=\"imagenet\""):
        create_backbone(name, "cifar")


def test_unknown_names_are_refused_with_near_ones():
    with pytest.raises(ValueError, match=r"a timm model, got 'resnet5'.*resnet50"):
        create_backbone("resnet5")
    with pytest.raises(ValueError, match=r"got 'nonsense'.*list_models"):
        create_backbone("nonsense")
    with pytest.raises(ValueError, match='"imagenet" or "cifar", got \'none\''):
        create_backbone("resnet18", "none")
