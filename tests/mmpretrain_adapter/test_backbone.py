"""timm models behind mmpretrain's interface."""

import pytest
import timm
import torch
from mmpretrain.registry import MODELS

VIT = {"model_name": "vit_tiny_patch16_224", "depth": 1, "img_size": 32}


def build(**options):
    return MODELS.build({"type": "TIMMEncoder", **options})


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_a_transformer_pools_as_in_timm(pool):
    encoder = build(**VIT, global_pool=pool).eval()
    witness = timm.create_model(**VIT, global_pool=pool, num_classes=0).eval()
    witness.load_state_dict(encoder.timm_model.state_dict())
    images = torch.randn(3, 3, 32, 32)
    (features,) = encoder(images)
    torch.testing.assert_close(features, witness(images))
    tokens = witness.forward_features(images)  # class token first, then 2 x 2 patches
    expected = tokens[:, 0]
    if pool == "avg":
        expected = witness.fc_norm(tokens[:, 1:].mean(dim=1))
    torch.testing.assert_close(features, expected)


def test_a_convolutional_network_is_pooled():
    encoder = build(model_name="resnet18").eval()
    images = torch.randn(2, 3, 64, 64)
    maps = encoder.timm_model.forward_features(images)
    torch.testing.assert_close(encoder(images)[0], maps.mean(dim=(2, 3)))


def test_frozen_is_frozen():
    encoder = build(model_name="resnet18", frozen=True)
    encoder.train()
    assert not any(module.training for module in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters())
    before = encoder.state_dict()["timm_model.bn1.running_mean"].clone()
    encoder(torch.randn(2, 3, 64, 64))
    assert torch.equal(encoder.timm_model.bn1.running_mean, before)
    free = build(model_name="resnet18").train()
    assert free.timm_model.bn1.training


def test_an_unknown_model_is_told():
    with pytest.raises(
        ValueError, match=r"timm model, got 'resnet5'; near it: .*resnet50"
    ):
        build(model_name="resnet5")
