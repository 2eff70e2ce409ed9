"""Images a second for each CPU core: our two-view pipeline and the hosts' own.

    python tools/benchmarks/benchmark_data.py FOLDER

FOLDER holds <class>/*.jpg as ImageNet's train folder does. Everything runs on one
pinned core in turns; what is compared is compared within a turn, in CPU time, so that a
busy machine matters little. kornia is shown where it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import mmpretrain
import numpy as np
import torch
from lightly.transforms import SimCLRTransform
from lightly.transforms.utils import IMAGENET_NORMALIZE
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.dataset import default_collate as mm_collate
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS, TRANSFORMS
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from simplejpeg import decode_jpeg, decode_jpeg_header
from torch import Tensor
from torch.utils.data import default_collate
from torchvision import transforms as T

import varcon_plugin.mmpretrain  # noqa: F401  registers TwoCrops
from varcon_plugin.commands.messages import fail
from varcon_plugin.training import BatchAugment
from varcon_plugin.training.crops import TwoCrops, crop_box, resized_crop
from varcon_plugin.training.decoding import decode

SIZE = 224
STOCK = ".mim/configs/_base_/datasets/imagenet_bs32_simclr.py"
Task = Callable[[], Any]


def find_images(folder: Path, count: int) -> list[str]:
    """``count`` JPEGs, spread over the folder."""
    found = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in (".jpeg", ".jpg")
    )
    if not found:
        fail(f"no JPEGs in {folder}")
    return [str(path) for path in found[:: max(1, len(found) // count)][:count]]


def each(function: Callable[[Any], Any], items: Iterable[Any]) -> Task:
    """A task that applies ``function`` to all ``items``."""
    items = list(items)

    def task() -> None:
        for item in items:
            function(item)

    return task


def pipelines(paths: list[str], batch: int) -> dict[str, Task]:
    """What a data worker does with each image, in five ways."""
    stock = Config.fromfile(Path(mmpretrain.__file__).parent / STOCK).train_pipeline
    ours = [{"type": "TwoCrops", "scale": SIZE}, {"type": "PackInputs"}]
    mm, mm_ours = (Compose([TRANSFORMS.build(s) for s in p]) for p in (stock, ours))
    lightly, crops = SimCLRTransform(input_size=SIZE), TwoCrops(SIZE)
    view = T.Compose(
        [
            T.RandomResizedCrop(SIZE),
            T.RandomHorizontalFlip(),
            T.RandomApply([T.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
            T.RandomGrayscale(p=0.2),
            T.RandomApply([T.GaussianBlur(23)], p=0.5),
            T.ToTensor(),
            T.Normalize(**IMAGENET_NORMALIZE),
        ]
    )

    def sample(path: str) -> dict[str, Any]:
        return {"img_path": path, "gt_label": 0, "sample_idx": 0}

    def opened(path: str) -> Image.Image:
        return Image.open(path).convert("RGB")

    def twice(image: Image.Image) -> list[Tensor]:
        return [view(image), view(image)]

    tasks: dict[str, tuple[Callable[[str], Any], Callable[[Any], Any]]] = {
        "mmpretrain, SimCLR": (lambda p: mm(sample(p)), mm_collate),
        "torchvision, SimCLR": (lambda p: twice(opened(p)), default_collate),
        "lightly, SimCLRTransform": (lambda p: lightly(opened(p)), default_collate),
        "ours in mmpretrain": (lambda p: mm_ours(sample(p)), mm_collate),
        "ours in lightly": (crops, default_collate),
    }
    parts = [paths[i : i + batch] for i in range(0, len(paths), batch)]

    def batches(load: Callable[[str], Any], collate: Callable[[Any], Any]) -> Task:
        return each(lambda part: collate([load(path) for path in part]), parts)

    return {name: batches(*task) for name, task in tasks.items()}


def stages(paths: list[str]) -> dict[str, Task]:
    """Where the time goes, for both views of an image."""
    data = [Path(path).read_bytes() for path in paths]
    decoded = [decode(encoded) for encoded in data]
    boxed = [(im, [crop_box(*im.shape[1:]) for _ in "ab"]) for im in decoded]
    views = [[resized_crop(im, box, (SIZE, SIZE)) for box in bs] for im, bs in boxed]
    arrays = [
        [v.flip(0).permute(1, 2, 0).numpy().copy() for v in pair] for pair in views
    ]
    packed = [[v.permute(1, 2, 0) for v in pair] for pair in views]
    _, flip, jitter, gray, blur = Config.fromfile(
        Path(mmpretrain.__file__).parent / STOCK
    ).view_pipeline
    stock = {"flip": flip, "colour jitter": jitter, "grayscale": gray, "blur": blur}

    def on_arrays(step: Any) -> Callable[[Any], Any]:
        return lambda pair: [step({"img": image}) for image in pair]

    def pillow_resize(item: Any) -> None:
        image, boxes = item
        array = image.permute(1, 2, 0).numpy()
        for top, left, h, w in boxes:
            part = Image.fromarray(array[top : top + h, left : left + w])
            np.array(part.resize((SIZE, SIZE), Image.Resampling.BILINEAR))

    tasks: dict[str, Task] = {
        "read the file": each(lambda p: Path(p).read_bytes(), paths),
        "decode (ours)": each(decode, data),
        "decode, OpenCV": each(decode_opencv, data),
        "decode, Pillow": each(decode_pillow, data),
        "decode, scaled where both crops allow": each(decode_scaled, data),
        "crop and resize (ours)": each(
            lambda item: [resized_crop(item[0], box, (SIZE, SIZE)) for box in item[1]],
            boxed,
        ),
        "crop and resize, Pillow": each(pillow_resize, boxed),
        "collate (ours)": lambda: default_collate(packed),
    }
    for name, step in stock.items():
        built = on_arrays(TRANSFORMS.build(step))
        tasks[f"mmpretrain's {name}"] = each(built, arrays)
    return tasks


def decode_opencv(data: bytes) -> Any:
    """As mmcv does."""
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def decode_pillow(data: bytes) -> Any:
    """As torchvision's and lightly's folders do."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def decode_scaled(data: bytes) -> Any:
    """At 1/2, 1/4 or 1/8 where libjpeg then still leaves both crops large enough."""
    height, width, *_ = decode_jpeg_header(data)
    share = SIZE / min(min(crop_box(height, width)[2:]) for _ in "ab")
    if share > 0.5:
        return decode(data)
    smallest = {"min_height": round(height * share), "min_width": round(width * share)}
    return decode_jpeg(data, "RGB", min_factor=2, **smallest)


def on_device(device: torch.device, batch: int) -> dict[str, Task]:
    """What runs on the batch, for two views."""
    views = [
        torch.randint(0, 256, (batch, SIZE, SIZE, 3), dtype=torch.uint8, device=device)
    ] * 2
    augment = BatchAugment().to(device)
    assert augment.mean is not None
    assert augment.std is not None
    normalise = MODELS.build(
        {
            "type": "SelfSupDataPreprocessor",
            "mean": list(augment.mean),
            "std": list(augment.std),
            "to_rgb": True,
        }
    ).to(device)
    planar = [view.permute(0, 3, 1, 2).contiguous() for view in views]
    tasks: dict[str, Task] = {
        "ours: all but the crops": lambda: augment(views),
        "mmpretrain: normalise": lambda: normalise(
            {"inputs": planar, "data_samples": None}
        ),
    }
    if importlib.util.find_spec("kornia"):
        tasks["kornia, one order a batch"] = kornia_task(views)
    if device.type == "cpu":
        return tasks
    return {name: synchronised(task) for name, task in tasks.items()}


def kornia_task(views: list[Tensor]) -> Task:
    """The operations of kornia; it draws the order of the jitter once for a batch."""
    from kornia import augmentation as K

    steps = torch.nn.Sequential(
        K.RandomHorizontalFlip(p=0.5),
        K.ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((23, 23), (0.1, 2.0), p=0.5),
        K.Normalize(**{k: torch.tensor(v) for k, v in IMAGENET_NORMALIZE.items()}),
    ).to(views[0].device)
    return lambda: [steps(v.permute(0, 3, 1, 2).float() / 255) for v in views]


def synchronised(task: Task) -> Task:
    """``task``, and wait for the device."""

    def run() -> None:
        task()
        torch.accelerator.synchronize()

    return run


def measure(
    tasks: dict[str, Task], rounds: int, what: str, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of each task in each round, the tasks in turns.

    A task runs once before it is timed, for a worker does nothing else.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in track(range(rounds), what, transient=True):
        for name, task in tasks.items():
            task()
            start = clock()
            task()
            seconds[name].append(clock() - start)
    return seconds


def show(
    console: Console, title: str, seconds: dict[str, list[float]], count: int, base: str
) -> None:
    """Print medians over the rounds; the ratio is that of the images a second."""
    table = Table("", "µs / image", "images / s", f"x {base}", title=title)
    for name, times in seconds.items():
        median = statistics.median(times) / count
        ratios = [b / t for b, t in zip(seconds[base], times, strict=True)]
        table.add_row(
            name,
            f"{1e6 * median:.0f}",
            f"{1 / median:.0f}",
            f"{statistics.median(ratios):.2f}",
        )
    console.print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=64, help="how many to read")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--core", type=int, default=0, help="which to run on")
    parser.add_argument("--device", default="cpu", help="of the batch-side operations")
    args = parser.parse_args()
    os.sched_setaffinity(0, {args.core})
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    warnings.filterwarnings("ignore", "Only use 'alpha'")
    init_default_scope("mmpretrain")
    torch.manual_seed(0)
    console, device = Console(width=100), torch.device(args.device)
    console.print(
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}"
    )

    paths = find_images(args.folder, args.images)
    count = len(paths)
    workers = measure(
        pipelines(paths, args.batch), args.rounds, "pipelines", time.process_time
    )
    show(console, "In a data worker, one core", workers, count, "mmpretrain, SimCLR")
    parts = measure(stages(paths), args.rounds, "stages", time.process_time)
    show(console, "By stage, both views", parts, count, "decode (ours)")
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    batch = measure(on_device(device, args.batch), args.rounds, "batch", clock)
    title = f"On the batch, {device}" + (", one core" if device.type == "cpu" else "")
    show(console, title, batch, args.batch, "ours: all but the crops")
    if device.type == "cpu":
        together = [
            a / count + b / args.batch
            for a, b in zip(
                workers["ours in mmpretrain"],
                batch["ours: all but the crops"],
                strict=True,
            )
        ]
        rate = 1 / statistics.median(together)
        console.print(f"ours, all of it on one core: {rate:.0f} images / s")
        console.print("The batch side was not measured on a GPU: --device cuda does.")
