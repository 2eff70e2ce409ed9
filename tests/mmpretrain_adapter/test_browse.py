"""tools/browse_views.py draws what the model sees."""

import numpy as np
import pytest
import torch
from paths import REPO
from PIL import Image

from varcon_plugin.commands import browse


@pytest.fixture(scope="module")
def browse_views():
    return browse


def test_views_that_the_batch_augments_are_drawn_augmented(
    browse_views, image_folder, tmp_path, monkeypatch
):
    drawn = []
    draw = browse_views.draw

    def watch(rows, bgr, path):
        drawn.extend(rows)
        assert bgr
        draw(rows, bgr, path)

    monkeypatch.setattr(browse_views, "draw", watch)
    # without colour operations, what is drawn has the colours of the files
    child = tmp_path / "child.py"
    child.write_text(
        f"""
_base_ = {str(REPO / "configs" / "varcon_r50_imagenet.py")!r}
train_dataloader = dict(dataset=dict(
    _delete_=True, type="CustomDataset", data_root={str(image_folder)!r},
    data_prefix="train",
    pipeline=[
        dict(type="TwoCrops", scale=224, crop_ratio_range=(0.99, 1.0)),
        dict(type="PackInputs"),
    ],
))
data_preprocessor = dict(flip_prob=0, jitter_prob=0, grayscale_prob=0, blur_prob=0)
"""
    )
    out = tmp_path / "views.png"
    browse_views.main([str(child), str(out), "--images", "2"])
    with Image.open(out) as picture:
        assert picture.size[0] > 100
    (_, views), _ = drawn
    assert len(views) == 2
    assert views[0].shape == (3, 224, 224)
    assert views[0].dtype == torch.uint8
    with Image.open(image_folder / "train" / "n01" / "0.JPEG") as file:
        mean = torch.from_numpy(np.array(file)).float().mean(dim=(0, 1))
    assert (views[0].flip(0).float().mean(dim=(1, 2)) - mean).abs().max() < 12
