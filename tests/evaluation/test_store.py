import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from varcon_plugin.evaluation.images import Images
from varcon_plugin.evaluation.store import (
    Features,
    export_features,
    load_features,
    weights_fingerprint,
)


@pytest.fixture
def features():
    return Features(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]), ("cat", "dog"))


def test_safetensors_come_back(features, tmp_path):
    path = tmp_path / "new" / "train.safetensors"
    export_features(features, path, {"note": "x"})
    found, about = load_features(path)
    assert torch.equal(found.features, features.features)
    assert torch.equal(found.labels, features.labels)
    assert found.classes == features.classes
    assert about == {"note": "x"}
    assert [p.name for p in path.parent.iterdir()] == ["train.safetensors"]


@pytest.mark.parametrize("harm", ["empty", "cut", "one bit", "other"])
def test_a_damaged_file_is_named(harm, features, tmp_path):
    path = tmp_path / "train.safetensors"
    export_features(features, path, {"note": "x"})
    whole = bytearray(path.read_bytes())
    if harm == "one bit":
        whole[-9] ^= 1
    path.write_bytes(
        {"empty": b"", "cut": whole[:-4], "other": b"x" * 99}.get(harm, whole)
    )
    with pytest.raises(ValueError, match=rf"^{path} is damaged \(.*: delete it$"):
        load_features(path)


def test_npz_is_plain_numpy(features, tmp_path):
    export_features(features, tmp_path / "train.npz", {"note": "x"})
    with np.load(tmp_path / "train.npz") as archive:  # no pickles
        assert np.array_equal(archive["features"], features.features)
        assert np.array_equal(archive["labels"], features.labels)
        about = json.loads(str(archive["about"]))
    assert about == {"note": "x", "classes": '["cat", "dog"]'}


def test_other_formats_are_refused(features, tmp_path):
    with pytest.raises(ValueError, match=r"\.npz or \.safetensors"):
        export_features(features, tmp_path / "train.csv", {})


def test_weights_change_their_fingerprint():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    fingerprints = {weights_fingerprint(module)}
    assert weights_fingerprint(module) in fingerprints
    with torch.no_grad():
        module[0].weight[0, 0, 0, 0] += 1e-6
    fingerprints.add(weights_fingerprint(module))
    module[1].running_var[0] = 2
    fingerprints.add(weights_fingerprint(module))
    fingerprints.add(weights_fingerprint(nn.Sequential(*module, nn.Flatten())))
    assert len(fingerprints) == 4


class Holder(nn.Module):
    def __init__(self, **parameters):
        super().__init__()
        for name, value in parameters.items():
            setattr(self, name, nn.Parameter(value))


def test_shapes_types_and_names_change_the_fingerprint():
    half = torch.zeros(4, 3, dtype=torch.bfloat16)
    holders = (
        Holder(a=torch.zeros(2, 3)), Holder(a=torch.zeros(3, 2)),
        Holder(b=torch.zeros(2, 3)), Holder(a=half),
    )  # fmt: skip
    assert len({weights_fingerprint(holder) for holder in holders}) == 4


def test_images_change_their_fingerprint(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(path)
    labels = torch.tensor([0, 1])
    images = Images([path, np.zeros((4, 4, 3), np.uint8)], labels, ("cat", "dog"))
    fingerprints = {images.fingerprint()}
    assert images.fingerprint() in fingerprints
    other = [path, np.ones((4, 4, 3), np.uint8)]
    fingerprints.add(images._replace(items=other).fingerprint())
    fingerprints.add(images._replace(labels=labels.flip(0)).fingerprint())
    fingerprints.add(images._replace(classes=("cat", "cow")).fingerprint())
    os.utime(path, ns=(0, 1))  # touched
    fingerprints.add(images.fingerprint())
    assert len(fingerprints) == 5
