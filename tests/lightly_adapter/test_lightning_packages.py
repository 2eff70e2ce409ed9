"""`lightning` beside `pytorch_lightning`: whatever does not mix says which to take."""

import sys
import types

import pytest

from varcon_plugin.lightly import (
    FiniteLossCallback,
    VarConDiagnosticsCallback,
    VarConLoss,
)


@pytest.fixture
def lightning(monkeypatch):
    """The other package, as far as a check of what is imported can tell."""
    for name in ("lightning", "lightning.pytorch"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))


def test_module_and_callbacks_say_which_trainer_to_take(lightning, varcon):
    for create in (varcon, FiniteLossCallback, VarConDiagnosticsCallback):
        with pytest.warns(UserWarning, match="take Trainer from pytorch_lightning"):
            create()


def test_the_loss_is_for_modules_of_either(lightning):
    VarConLoss()


def test_nothing_is_said_where_there_is_one(varcon):
    assert "lightning.pytorch" not in sys.modules
    varcon()
    FiniteLossCallback()
