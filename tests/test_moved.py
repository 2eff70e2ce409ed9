"""Modules are still found under the names they had."""

import importlib
import subprocess
import sys

import pytest

from varcon_plugin._moved import MOVED


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_an_old_name_gives_the_module_of_today(old, new):
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} has moved: import {new}"):
        module = importlib.import_module(old)
    assert module is importlib.import_module(new)
    assert module.__spec__.name == new


def test_from_imports_of_old_names_work_in_a_fresh_interpreter():
    code = (
        "from varcon_plugin.augment.crops import TwoCrops\n"
        "from varcon_plugin.augment import BatchAugment\n"
        "from varcon_plugin.monitor import DiagnosticsMonitor\n"
        "import varcon_plugin.sampler\n"
        "print(TwoCrops.__module__, varcon_plugin.sampler.__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [
        "varcon_plugin.training.crops",
        "varcon_plugin.training.sampler",
    ]


def test_unknown_modules_are_still_unknown():
    with pytest.raises(ModuleNotFoundError, match=r"varcon_plugin\.nothing"):
        importlib.import_module("varcon_plugin.nothing")
