"""Do the recipes run on the original releases of OpenMMLab? Tried from nothing.

    python tools/try_upstream.py [FOLDER]

Makes a virtual environment with them and this project, trains the digits recipe a
little, resumes, evaluates, and runs the adapter's tests: a line a step, exit status 1
if one fails. FOLDER (default: a temporary one) takes several GB.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path

from varcon_plugin.commands.places import project_root

ROOT = project_root()
PINS = ["mmengine==0.10.7", "mmcv-lite==2.2.0", "mmpretrain==1.2.0", "openmim==0.3.9"]
OLD = ["numpy<2", "opencv-python<4.11", "setuptools<81"]  # what these releases need
SHOWN = ("python", "torch", "numpy", "opencv-python", "setuptools")
RECIPE = "configs/varcon_r18_digits.py"
LINEAR = "configs/varcon_r18_digits_linear.py"
SAVE = "default_hooks.checkpoint.interval=1"


class Trial:
    """Runs the steps in one environment, and keeps whether one failed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "venv" / "bin"
        self.failed = False

    def step(self, what: str, command: Sequence[object], proof: str = "") -> bool:
        """Run a command in the environment, say in a line whether it worked.

        Args:
            what: the step, in words.
            command: a program of the environment, and its arguments.
            proof: has to be in what the command says.
        """
        print(f"{what:<44} ", end="", flush=True)
        start = time.monotonic()
        done = subprocess.run(
            [str(part) for part in command],
            cwd=ROOT,
            env=os.environ
            | {
                "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        works = done.returncode == 0 and proof in done.stdout
        print(f"{'works' if works else 'FAILS'}  {time.monotonic() - start:4.0f} s")
        if not works:
            self.failed = True
            print(*done.stdout.splitlines()[-15:], sep="\n    ", file=sys.stderr)
        return works

    def install(self) -> bool:
        """The environment, anew or brought up to date."""
        if not (self.bin / "python").exists():
            venv.create(self.folder / "venv", with_pip=True)
        pip = [self.bin / "python", "-m", "pip", "install"]
        # mmcv-lite is built from source, with the setuptools that are there
        first = [*pip, "--upgrade", "pip>=25.1", "wheel", "setuptools<81"]
        rest = [*pip, *PINS, *OLD]
        return self.step("install pip and setuptools", first) and self.step(
            "install the releases and .[recipes,eval]",
            [*rest, f"{ROOT}[recipes,eval]", "pytest", "pyyaml"],
        )

    def versions(self) -> None:
        """Print what has been installed."""
        names = [*SHOWN[1:], *(pin.split("==")[0] for pin in PINS)]
        code = (
            "import platform; from importlib.metadata import version; "
            "print('python', platform.python_version(), end='')\n"
            f"for name in {names}: print(', ' + name, version(name), end='')"
        )
        subprocess.run([str(self.bin / "python"), "-c", code], check=True)
        print()

    def recipes(self, tests: bool) -> None:
        """Train, resume, evaluate; as many steps as work without each other."""
        runs = self.folder / "runs"
        shutil.rmtree(runs, ignore_errors=True)
        python = self.bin / "python"
        train, test = [python, "tools/train.py"], [python, "tools/test.py"]
        mim = [self.bin / "mim", "train", "mmpretrain", "--gpus", "0"]
        ours, theirs, linear = runs / "ours", runs / "mim", runs / "linear"
        for name, command, out in (
            ("tools/train.py", train, ours),
            ("mim train mmpretrain", mim, theirs),
        ):
            run = [*command, RECIPE, "--work-dir", out, "--cfg-options", SAVE]
            self.step(f"{name}: train", [*run, epochs(1)], "Saving checkpoint at 1 e")
            resume = [*run[:-2], "--resume", *run[-2:], epochs(2)]
            self.step(f"{name}: resume", resume, "resumed epoch: 1, iter: 10")
        run = ["bash", "tools/dist_train.sh", RECIPE, 2, "--work-dir", runs / "two"]
        self.step("dist_train.sh: two processes", [*run, "--cfg-options", epochs(1)])
        checkpoint = f"model.backbone.init_cfg.checkpoint={ours / 'epoch_2.pth'}"
        options = ["--work-dir", linear, "--cfg-options", SAVE, epochs(1), checkpoint]
        self.step("mim: linear evaluation", [*mim, LINEAR, *options], "accuracy/top1")
        options = [linear / "epoch_1.pth", "--work-dir", runs / "test"]
        self.step("tools/test.py", [*test, LINEAR, *options], "accuracy/top1")
        report = ["--out", runs / "report", "--protocols", "knn"]
        evaluate = [python, "tools/evaluate.py", RECIPE, ours / "epoch_2.pth"]
        self.step(
            "tools/evaluate.py", [*evaluate, "--data", "digits", *report], "top-1"
        )
        if tests:
            quiet = ["-q", "-o", "filterwarnings=default"]  # of other releases
            adapter = [*quiet, "tests/mmpretrain_adapter"]
            self.step("tests of the adapter", [python, "-m", "pytest", *adapter])


def epochs(number: int) -> str:
    """A config option."""
    return f"train_cfg.max_epochs={number}"


def main() -> None:
    """Try it; 1 if a step fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--no-tests", action="store_true", help="the runs alone")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        trial = Trial((args.folder or Path(temporary)).resolve())
        if trial.install():
            trial.versions()
            trial.recipes(tests=not args.no_tests)
    sys.exit(trial.failed)
