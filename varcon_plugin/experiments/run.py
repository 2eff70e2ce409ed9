"""Train and evaluate one cell of a grid, or find that this has been done."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import torch

from varcon_plugin.checkpoints.ownership import owned
from varcon_plugin.evaluation import sources
from varcon_plugin.evaluation.class_mean import class_mean_predict
from varcon_plugin.evaluation.images import Splits
from varcon_plugin.evaluation.knn import knn_predict
from varcon_plugin.evaluation.linear import linear_probe
from varcon_plugin.evaluation.metrics import mean_per_class, topk_accuracy
from varcon_plugin.evaluation.settings import Settings
from varcon_plugin.evaluation.suite import Evaluation
from varcon_plugin.experiments.grid import Cell
from varcon_plugin.experiments.recipe import Place, cell_config
from varcon_plugin.experiments.subsets import groups
from varcon_plugin.mmpretrain import launch
from varcon_plugin.mmpretrain.evaluation import load_encoder, load_splits

__all__ = ["CellError", "read_data", "run_cell", "run_cells"]

K, TEMPERATURE = 20, 0.07  # DINO's k-NN evaluation
READING = Lock()  # mmengine reads configs by way of sys.path


class CellError(Exception):
    """Training failed; says where its log is."""


def run_cells(
    cells: Sequence[Cell], place: Place
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and result of each cell, as it is ready; ``place.jobs`` of them at a time.

    Raises:
        CellError: training failed; what runs then is finished, the rest left.
    """
    data = read_data(place)
    with ThreadPoolExecutor(place.jobs) as pool:
        names = {pool.submit(run_cell, cell, place, data): cell.name for cell in cells}
        try:
            for future in as_completed(names):
                yield names[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def run_cell(cell: Cell, place: Place, data: Splits) -> dict[str, Any]:
    """The result of ``cell``: read if it is there, else trained for and evaluated.

    That happens in a process of its own, forked from one that has imported all it
    needs, which ends with this one. A run that was interrupted goes on from its last
    checkpoint; if its process is killed, that happens at once, but only once.

    Raises:
        CellError: training failed.
        ValueError: the folder holds a damaged result, or that of another configuration.
    """
    folder = place.out / "cells" / cell.name
    with READING:
        cfg = cell_config(cell, place)
    described = json.loads(json.dumps({"config": cfg.to_dict()}, default=str))
    done = folder / "result.json"
    if not done.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        cfg.dump(folder / "config.py")
        arguments = (cell, described, folder, place, data)
        code = in_process(arguments)
        if code < 0:
            code = in_process(arguments)
        if code:
            raise CellError(failure(code, folder / "train.log"))
    try:
        result: dict[str, Any] = json.loads(done.read_text())
    except ValueError as error:
        raise ValueError(f"{done} is damaged ({error}): delete it") from error
    if result["config"] != described["config"]:
        raise ValueError(
            f"{done} was made with other settings (epochs, data, recipe?): give "
            "another --out, or delete that folder"
        )
    return result


def in_process(arguments: tuple[Any, ...]) -> int:
    """Exit code of a process that runs `logged`; below 0 the signal that killed it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "mmpretrain.models"])
    process = context.Process(target=logged, args=arguments)
    process.start()
    process.join()
    if process.exitcode and process.pid:
        with suppress(ProcessLookupError):  # the ranks that it has started
            os.killpg(process.pid, signal.SIGKILL)
    return process.exitcode or 0


def failure(code: int, log: Path) -> str:
    """What is known of a cell that ended with ``code``."""
    if code < 0:
        return f"training was killed twice by {signal.Signals(-code).name}; see {log}"
    tail = "\n".join(log.read_text().splitlines()[-5:])
    return f"training failed ({code}); {log} ends with\n{tail}"


def end_with_command() -> None:
    """Have this process and what it starts killed when the command has ended."""
    os.setsid()

    def watch() -> None:
        command = multiprocessing.parent_process()
        if command is not None:
            command.join()
            os.killpg(0, signal.SIGKILL)

    Thread(target=watch, daemon=True).start()


def logged(
    cell: Cell, described: dict[str, Any], folder: Path, place: Place, data: Splits
) -> None:
    """`fill` with its output in a file, as the whole life of a process."""
    with (folder / "train.log").open("a") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
    end_with_command()
    if place.jobs > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // place.jobs))
    try:
        with owned(folder / ".cell"):  # the folder itself is for the training to own
            fill(cell, described, folder, place, data)
    except BaseException:
        traceback.print_exc()
        raise


def fill(
    cell: Cell, described: dict[str, Any], folder: Path, place: Place, data: Splits
) -> None:
    """Train, evaluate, and write ``result.json``."""
    config = folder / "config.py"
    start = time.monotonic()
    train(config, folder, place)
    seconds = time.monotonic() - start
    checkpoints = sorted(folder.glob("epoch_*.pth"), key=epoch_of)
    result = {
        "method": cell.method.name,
        "setting": cell.setting,
        "seed": cell.seed,
        "learning_rate": cell.learning_rate,
        "seconds": round(seconds, 1),
        **measure(config, checkpoints, data, place),
        **described,
    }
    temporary = folder / "result.json.tmp"
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(folder / "result.json")
    for checkpoint in checkpoints[:-1]:
        checkpoint.unlink()


def train(config: Path, folder: Path, place: Place) -> None:
    """Run the config, from its last checkpoint if it has one."""
    arguments = [str(config), "--work-dir", str(folder), "--resume"]
    if place.processes == 1:
        sys.argv = ["train.py", *arguments]
        os.chdir(place.root)
        launch.main("train")
        return
    script = str(place.root / "tools" / "dist_train.sh")
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(
        ["bash", script, arguments[0], str(place.processes), *arguments[1:]],
        cwd=place.root,
        env=os.environ | {"PATH": search},
        check=True,
    )


def epoch_of(checkpoint: Path) -> int:
    """12 for epoch_12.pth."""
    return int(checkpoint.stem.removeprefix("epoch_"))


def measure(
    config: Path, checkpoints: Sequence[Path], data: Splits, place: Place
) -> dict[str, Any]:
    """k-NN top-1 of all checkpoints; linear and class-mean top-1 of the last one.

    Class means are those of embeddings where there is a projection head.

    Where there are rare classes, both by `groups` too.
    ``per_class`` is the k-NN accuracy with equal weight of all classes that occur.
    """
    settings = Settings(device=place.device)
    curve = []
    for checkpoint in checkpoints:
        evaluation = Evaluation(load_encoder(config, checkpoint), data, settings)
        train, labels, test, truth = evaluation.split
        ranked = {"knn": knn_predict(train, labels, test, k=K, temperature=TEMPERATURE)}
        curve.append([epoch_of(checkpoint), topk_accuracy(ranked["knn"], truth).top1])
    *_, split = evaluation.spaces().values()
    ranked["class_mean"] = class_mean_predict(*split)
    if place.linear:
        cs = place.regularisations
        ranked["linear"] = linear_probe(*evaluation.split, cs=cs).ranked
    result: dict[str, Any] = {
        "curve": curve,
        "per_class": mean_per_class(ranked["knn"], truth),
    }
    for protocol, found in ranked.items():
        result[protocol] = topk_accuracy(found, truth).top1
        for group, classes in groups(labels.cpu()).items():
            mine = torch.isin(truth, classes.to(truth.device))
            if mine.any():
                accuracy = topk_accuracy(found[mine], truth[mine]).top1
                result[f"{protocol}_{group}"] = accuracy
    return result


def read_data(place: Place) -> Splits:
    """Training and test images to evaluate on: those of the recipe, or the folder's."""
    if place.data is not None:
        return sources.folder(place.data)
    if place.recipe.endswith("digits"):
        return sources.digits()
    linear = place.root / "configs" / f"varcon_{place.recipe}_linear.py"
    return load_splits(linear)
