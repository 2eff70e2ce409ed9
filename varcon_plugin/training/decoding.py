"""Image files to pixels, read the same strict way by every door and by evaluation.

Needs Pillow and simplejpeg, which both adapters bring. What is refused, and what is
then done, stands in docs/data.md.
"""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from simplejpeg import decode_jpeg, decode_jpeg_header
from torch import Tensor

from varcon_plugin.training.damaged import CorruptImageError

__all__ = ["ChannelOrder", "decode", "from_pillow", "load_image", "read_image"]

ChannelOrder = Literal["RGB", "BGR"]
JPEG_START = b"\xff\xd8"
EXIF_START = b"Exif\x00\x00"
EXIF_WITHIN = 4096  # the Exif segment comes first, or after a short JFIF one
UPRIGHT = 1
SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L")
UNKNOWN_RANGE = (*SIXTEEN_BITS, "F")  # Pillow would clip these to 0 .. 255


def read_image(path: str | os.PathLike[str], order: ChannelOrder = "RGB") -> Tensor:
    """`decode` of a file; devices and pipes are not opened.

    Raises:
        CorruptImageError: it cannot be read or decoded; names the file.
    """
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise CorruptImageError("it is not a regular file")
        return decode(Path(path).read_bytes(), order)
    except CorruptImageError as error:
        raise CorruptImageError(error.reason, os.fspath(path)) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise CorruptImageError(reason, os.fspath(path)) from error


def load_image(path: str | os.PathLike[str]) -> Image.Image:
    """`read_image` for transforms that take Pillow images: torchvision's ``loader``."""
    return Image.fromarray(read_image(path).permute(1, 2, 0).numpy())


def decode(data: bytes, order: ChannelOrder = "RGB") -> Tensor:
    """The image as (3, H, W) uint8, upright, in the memory order (H, W, 3).

    A JPEG at which libjpeg as much as warns is refused: what other decoders make of the
    rest is not the picture. Everything else is read by Pillow. 16-bit PNGs give their
    upper eight bits. More pixels than ``PIL.Image.MAX_IMAGE_PIXELS`` are refused before
    they take memory.

    Raises:
        CorruptImageError: it cannot be decoded, or not to what it shows.
    """
    if not data:
        raise CorruptImageError("the file is empty")
    try:
        if data.startswith(JPEG_START):
            return decode_strictly(data, order)
        return from_pillow(Image.open(io.BytesIO(data)), order)
    except CorruptImageError:
        raise
    except Exception as error:  # whatever a parser raises on garbage
        raise CorruptImageError(str(error) or type(error).__name__) from error


def decode_strictly(data: bytes, order: ChannelOrder) -> Tensor:
    """`decode` of a JPEG."""
    height, width, colours, _ = decode_jpeg_header(data)
    check_size(width, height)
    if colours in ("CMYK", "YCCK"):
        decode_jpeg(data, "CMYK")  # complains of damage; Pillow knows Adobe's inks
        return from_pillow(Image.open(io.BytesIO(data)), order)
    pixels = torch.from_numpy(decode_jpeg(data, order))
    turned = orientation(data)
    if turned >= 5:  # the camera lay on its side
        pixels = pixels.transpose(0, 1)
    mirrored = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}
    if turned in mirrored:
        pixels = pixels.flip(mirrored[turned])
    return pixels.contiguous().permute(2, 0, 1)


def check_size(width: int, height: int) -> None:
    """Raise CorruptImageError for more pixels than Pillow takes without a warning."""
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and width * height > most:
        raise CorruptImageError(
            f"it claims {width} x {height} pixels, more than "
            f"PIL.Image.MAX_IMAGE_PIXELS = {most}"
        )


def orientation(data: bytes) -> int:
    """The Exif orientation of a JPEG, 1 to 8; `UPRIGHT` if it has none."""
    if EXIF_START not in data[:EXIF_WITHIN]:
        return UPRIGHT
    try:
        exif = Image.open(io.BytesIO(data)).getexif()
    except Exception:  # whatever a parser raises on garbage
        return UPRIGHT
    value = exif.get(ExifTags.Base.Orientation, UPRIGHT)
    return value if value in range(1, 9) else UPRIGHT


def from_pillow(image: Image.Image, order: ChannelOrder = "RGB") -> Tensor:
    """(3, H, W) uint8, upright, in the memory order (H, W, 3).

    Raises:
        CorruptImageError: its pixels have no known range, or there are too many.
    """
    check_size(*image.size)
    if image.mode in SIXTEEN_BITS and image.format == "PNG":
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in UNKNOWN_RANGE:
        raise CorruptImageError(
            f"its pixels are not 8-bit (Pillow's mode {image.mode}), and the range of "
            "their values is not known: convert it to 8 bits"
        )
    pixels = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    if order == "BGR":
        pixels = pixels[..., ::-1].copy()
    return torch.from_numpy(pixels).permute(2, 0, 1)
