"""Images and folders of images that are broken.

Tests and `make chaos` read them through every door.
"""

from __future__ import annotations

import functools
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["GREY", "SPOILT", "damaged_files", "encoded", "noise", "whole_folder"]

GREY = 200  # of every pixel of the whole images


def whole_folder(root: Path) -> Path:
    """Four grey images of two classes in ``root/train`` and in ``root/test``."""
    whole = encoded(np.full((40, 50, 3), GREY, np.uint8), "PNG")
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            path = root / split / name
            path.mkdir(parents=True)
            for index in range(2):
                (path / f"{index}.png").write_bytes(whole)
    return root


def encoded(pixels: np.ndarray, kind: str = "JPEG") -> bytes:
    """The content of a file that shows ``pixels``."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def noise() -> np.ndarray:
    """An image that does not compress: (160, 200, 3), uint8."""
    return np.random.default_rng(0).integers(0, 256, (160, 200, 3), dtype=np.uint8)


@functools.cache
def damaged_files() -> dict[str, bytes]:
    """What is wrong with a file, and its content."""
    jpeg, png = encoded(noise()), encoded(noise(), "PNG")
    half = len(jpeg) // 2
    return {
        "ends early": jpeg[:half],
        "ends early, with an end marker": jpeg[:half] + b"\xff\xd9",
        "4 KiB of zeros": jpeg[:half] + bytes(4096) + jpeg[half + 4096 :],
        "4 KiB of another file": jpeg[:half] + png[1000:5096] + jpeg[half + 4096 :],
        "empty": b"",
        "a page": b"<html>404 Not Found</html>",
        "claims 60,000 x 60,000": with_size(jpeg, 60000, 60000),
        "a bomb": png_of_size(12000, 12000),
        "PNG that ends early": png[: len(png) // 2],
        "PNG, one bit flipped": png[:5000] + bytes([png[5000] ^ 8]) + png[5001:],
        "float TIFF": encoded(np.full((40, 40), 0.5, np.float32), "TIFF"),
        "16-bit TIFF": encoded(np.full((40, 40), 3000, np.uint16), "TIFF"),
    }


def with_size(jpeg: bytes, height: int, width: int) -> bytes:
    """A JPEG that claims another size."""
    start = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:start] + struct.pack(">HH", height, width) + jpeg[start + 4 :]


def png_of_size(width: int, height: int) -> bytes:
    """A PNG of one colour, a thousandth of the memory that it takes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packed = zlib.compress(bytes((width + 1) * height), 1)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


# Spoil ``root/train`` by way of its first class; return a pattern of what is said.


def pipe(cat: Path) -> str:
    os.mkfifo(cat / "pipe.jpg")
    return "pipe.jpg is not a regular file"


def loop(cat: Path) -> str:
    (cat / "again").symlink_to(cat.parent)
    return "leads back to a folder that it lies in"


def link_to_nothing(cat: Path) -> str:
    (cat / "gone.jpg").symlink_to("nowhere.jpg")
    return "gone.jpg is a link to nothing"


def empty_class(cat: Path) -> str:
    (cat.parent / "emu").mkdir()
    return "no images in class folder .*emu"


def class_without_images(cat: Path) -> str:
    (cat.parent / "emu").mkdir()
    (cat.parent / "emu" / "notes.txt").touch()
    return "no images in class folder .*emu"


def class_that_is_no_text(cat: Path) -> str:
    os.mkdir(os.fsencode(cat.parent) + b"/caf\xe9")  # noqa: PTH102  bytes
    return r"class folder caf\\xe9 .* not UTF-8"


def link_to_itself(cat: Path) -> str:
    (cat / "self").symlink_to(cat / "self")
    return "cannot read the folder .*self: Too many levels"


def no_classes(cat: Path) -> str:
    for path in cat.parent.glob("*/*"):
        path.rename(cat.parents[1] / path.name)
    cat.rmdir()
    (cat.parent / "dog").rmdir()
    return "no class folders in .*train"


SPOILT = (
    pipe,
    loop,
    link_to_nothing,
    empty_class,
    class_without_images,
    class_that_is_no_text,
    link_to_itself,
    no_classes,
)
