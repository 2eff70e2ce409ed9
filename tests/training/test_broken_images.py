"""Kinds of broken images x doors: replaced and named, refused, or read rightly."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from varcon_plugin.commands.attacks.broken import (
    GREY,
    SPOILT,
    damaged_files,
    encoded,
    noise,
    whole_folder,
)
from varcon_plugin.commands.attacks.images import DOORS
from varcon_plugin.training.crops import TwoCrops
from varcon_plugin.training.damaged import ReplaceCorrupt
from varcon_plugin.training.decoding import load_image
from varcon_plugin.training.image_folder import ImageFolder


@pytest.fixture
def images(tmp_path):
    """Four grey images of two classes in train and test."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  mmengine draws from the global one
    return whole_folder(tmp_path)


def check_replaced(images, path, door, logged):
    """The other images are delivered, and the log (or the error) names ``path``."""
    if door == "evaluation":
        with pytest.raises(ValueError, match=re.escape(f"image {path} cannot be used")):
            DOORS[door](images)
        return
    grey = DOORS[door](images)
    assert len(grey) == 5
    assert all(abs(value - GREY) < 1 for value in grey)
    assert f"{path} cannot be used" in logged()


@pytest.fixture
def logged(caplog, capfd):
    """Everything that was logged or printed."""
    return lambda: caplog.text + "".join(capfd.readouterr())


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", damaged_files())
def test_a_damaged_file_is_replaced_and_named(kind, door, images, logged):
    path = images / "train" / "cat" / "damaged.jpg"
    path.write_bytes(damaged_files()[kind])
    check_replaced(images, path, door, logged)


@pytest.mark.parametrize("door", DOORS)
def test_a_file_that_cannot_be_read_is_replaced_and_named(door, images, logged):
    path = images / "train" / "cat" / "unreadable.jpg"
    path.symlink_to("/proc/self/mem")  # a regular file, an input/output error
    check_replaced(images, path, door, logged)


@pytest.mark.parametrize("door", DOORS)
def test_a_file_that_may_not_be_read_is_replaced_and_named(
    door, images, logged, monkeypatch
):
    path = images / "train" / "cat" / "secret.jpg"
    path.write_bytes(encoded(noise()))
    read = Path.read_bytes

    def refuse(self):  # to root, nothing is forbidden
        if self.name == "secret.jpg":
            raise PermissionError(13, "Permission denied", str(self))
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    check_replaced(images, path, door, logged)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("spoil", SPOILT)
def test_a_spoilt_folder_is_refused_before_training(spoil, door, images):
    message = spoil(images / "train" / "cat")
    with pytest.raises(ValueError, match=message):
        DOORS[door](images)


def sixteen_bits(cat):
    pixels = np.full((40, 40), GREY * 256 + 77, np.uint16)
    (cat / "deep.png").write_bytes(encoded(pixels, "PNG"))


def name_that_is_no_text(cat):
    data = (cat / "0.png").read_bytes()
    with open(os.fsencode(cat) + b"/caf\xe9.png", "wb") as file:  # noqa: PTH123  bytes
        file.write(data)


def hidden_files(cat):
    (cat / "._0.jpg").write_bytes(b"macOS leaves these")
    (cat.parent / ".cache").mkdir()
    (cat / "2.PNG").write_bytes((cat / "0.png").read_bytes())


def transparent(cat):
    Image.new("RGBA", (40, 40), (GREY, GREY, GREY, 9)).save(cat / "glass.png")


def inks(cat):
    pixels = Image.new("CMYK", (40, 40), (0, 0, 0, 255 - GREY))
    pixels.save(cat / "inks.jpg", quality=95)


def folder_like_an_image(cat):
    (cat / "more.jpg").mkdir()
    (cat / "more.jpg" / "2.png").write_bytes((cat / "0.png").read_bytes())


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    "add",
    [
        sixteen_bits,
        name_that_is_no_text,
        hidden_files,
        transparent,
        inks,
        folder_like_an_image,
    ],
)
def test_unusual_images_are_read_rightly(add, door, images):
    add(images / "train" / "cat")
    grey = DOORS[door](images)
    assert len(grey) == 5
    assert all(abs(value - GREY) < 1.5 for value in grey)


def test_a_pipe_that_comes_later_does_not_block(images, logged):
    data = ImageFolder(str(images / "train"), loader=str, transform=TwoCrops(16))
    path = images / "train" / "cat" / "0.png"
    path.unlink()
    os.mkfifo(path)
    assert ReplaceCorrupt(data)[0]
    assert f"{path} cannot be used: it is not a regular file" in logged()


@pytest.mark.parametrize("tag", range(1, 9))
def test_every_exif_orientation(tag, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = tag
    coarse = Image.fromarray(noise()[:6, :8]).resize((80, 60), Image.Resampling.BICUBIC)
    path = tmp_path / "turned.jpg"
    coarse.save(path, quality=95, exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(np.asarray(load_image(path)), expected)
