"""mmpretrain's own interfaces take our recipes."""

import numpy as np
import pytest
import torch
from mmpretrain import FeatureExtractor, get_model
from paths import REPO

RECIPE = str(REPO / "configs" / "varcon_r18_digits.py")
LINEAR = str(REPO / "configs" / "varcon_r18_digits_linear.py")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "epoch_20.pth"
    torch.save({"state_dict": get_model(RECIPE).state_dict(), "meta": {}}, path)
    return path


def test_get_model_fills_a_recipe(checkpoint):
    torch.manual_seed(1)
    model = get_model(RECIPE, pretrained=str(checkpoint))
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(value, saved[n]) for n, value in model.state_dict().items())


def test_feature_extractor_gives_the_features_of_the_backbone(checkpoint):
    extract = FeatureExtractor(LINEAR, pretrained=str(checkpoint))
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    (features,) = extract(image, stage="neck")
    model = get_model(RECIPE, pretrained=str(checkpoint)).eval()
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        maps = model.extract_feat((pixels - 127.5) / 127.5)[-1]
    torch.testing.assert_close(features[-1].cpu(), maps.mean(dim=(2, 3))[0])
