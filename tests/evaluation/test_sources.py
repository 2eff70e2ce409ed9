import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader

from varcon_plugin.checkpoints.reading import CheckpointError
from varcon_plugin.checkpoints.weights import fill, read_weights
from varcon_plugin.evaluation.images import (
    ImageDataset,
    ImageError,
    read_folder,
    read_rgb,
)
from varcon_plugin.evaluation.sources import digits, folder, timm_encoder


@pytest.fixture
def pictures(tmp_path):
    """train and test with two classes, three and one images."""
    random = np.random.default_rng(0)
    for split, counts in (("train", (3, 3)), ("test", (1, 1))):
        for name, count in zip(("cat", "dog"), counts, strict=True):
            target = tmp_path / split / name
            target.mkdir(parents=True)
            for index in range(count):
                image = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(image).save(target / f"{index}.png")
    return tmp_path


def test_folder(pictures):
    splits = folder(pictures)
    assert splits.train.classes == ("cat", "dog")
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert [p.name for p in splits.train.items[:3]] == ["0.png", "1.png", "2.png"]
    assert len(splits.test.items) == 2
    assert splits.validation is None
    (pictures / "test").rename(pictures / "val")
    assert len(folder(pictures).test.items) == 2


def test_a_class_of_training_may_be_missing_in_test(pictures):
    (pictures / "test" / "cat" / "0.png").unlink()
    (pictures / "test" / "cat").rmdir()
    assert folder(pictures).test.labels.tolist() == [1]


def test_folder_says_what_is_wrong(pictures):
    with pytest.raises(ValueError, match=r"image folder not found: .*/train/train"):
        folder(pictures / "train")
    with pytest.raises(ValueError, match="image folder not found"):
        read_folder(pictures / "nope")
    with pytest.raises(ValueError, match=r"no class folders in .*test/cat"):
        read_folder(pictures / "test" / "cat")
    (pictures / "test" / "emu").mkdir()
    with pytest.raises(ValueError, match=r"1 classes that the training .*emu"):
        folder(pictures)
    (pictures / "train" / "emu").mkdir()
    with pytest.raises(ValueError, match=r"no images in class folder .*emu"):
        folder(pictures)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no image",
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\x01IHDR",  # Pillow: SyntaxError
        None,  # cut
    ],
)
def test_a_broken_image_is_named_in_one_line(content, workers, pictures):
    path = pictures / "train" / "cat" / "1.png"
    path.write_bytes(path.read_bytes()[:100] if content is None else content)
    images = folder(pictures).train
    dataset = ImageDataset(images.items, lambda item: np.array(read_rgb(item)))
    with pytest.raises(ImageError) as caught:
        list(DataLoader(dataset, num_workers=workers))
    assert f"image {path} cannot be used" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_safetensors_are_named(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(3)}, path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=rf"^{path} is damaged: "):
        read_weights(path)


def test_digits():
    splits = digits()
    assert (len(splits.train.items), len(splits.test.items)) == (1347, 450)
    assert splits.train.items[0].shape == (8, 8, 3)
    assert splits.train.classes[3] == "3"


@pytest.fixture(scope="module")
def timm_weights(tmp_path_factory):
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", pretrained=False, num_classes=7)
    path = tmp_path_factory.mktemp("timm") / "weights.safetensors"
    save_file({f"backbone.{k}": v for k, v in model.state_dict().items()}, path)
    return model, path


def test_timm_model_with_weights_from_disk(timm_weights, pictures):
    model, path = timm_weights
    encoder = timm_encoder("test_resnet", path, image_size=32)
    item = folder(pictures).train.items[0]
    image = encoder.transform(item)
    assert (image.shape, image.dtype) == ((3, 32, 32), torch.uint8)
    # timm's own transform, classifier cut off afterwards
    config = timm.data.resolve_model_data_config(model)
    config |= {"input_size": (3, 32, 32), "crop_pct": 1.0}
    own = timm.data.create_transform(**config)(Image.open(item))[None]
    model.reset_classifier(0)
    with torch.no_grad():
        expected = model.eval()(own)
        found = encoder.module.eval()(image[None])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert "32" in repr(encoder.transform)


def test_timm_says_what_is_wrong(timm_weights, tmp_path):
    _, path = timm_weights
    with pytest.raises(ValueError, match="'test_resne'; near it: test_resnet"):
        timm_encoder("test_resne", path)
    with pytest.raises(ValueError, match="does not fill the backbone"):
        timm_encoder("test_vit", path)
    with pytest.raises(FileNotFoundError, match="checkpoint not found"):
        timm_encoder("test_resnet", tmp_path / "nope.pth")


def layers(depth):
    return nn.ModuleDict({"stem": nn.Linear(2, 3), "body": nn.ModuleList(
        nn.Linear(3, 3) for _ in range(depth)
    )})  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "backbone.", "model.encoder."])
def test_weights_are_found_under_any_prefix(prefix):
    source, target = layers(2), layers(2)
    weights = {prefix + name: value for name, value in source.state_dict().items()}
    weights |= {"head.weight": torch.zeros(1)}
    fill(target, weights, "here")
    for name, value in target.state_dict().items():
        assert torch.equal(value, source.state_dict()[name])


def test_the_backbone_goes_before_its_momentum_copy():
    source, target = layers(1), layers(1)
    weights = {f"ema.{k}": v + 1 for k, v in source.state_dict().items()}
    weights |= {f"backbone.{k}": v for k, v in source.state_dict().items()}
    fill(target, weights, "here")
    assert torch.equal(target["stem"].weight, source["stem"].weight)


def test_what_does_not_fit_is_listed():
    weights = layers(2).state_dict()
    with pytest.raises(ValueError, match=r"missing: body\.2\.weight, body\.2\.bias"):
        fill(layers(3), weights, "here")
    with pytest.raises(ValueError, match=r"unexpected: body\.1\.weight, body\.1\.bias"):
        fill(layers(1), weights, "here")
    weights["stem.bias"] = torch.zeros(4)
    with pytest.raises(ValueError, match=r"shape: stem\.bias \(4,\) for \(3,\)"):
        fill(layers(2), weights, "here")
