"""Commands as a user types them, each a process, given the checkpoint of an attacker.

The others of `ENTRIES` and `PAYLOADS` are run so by `make chaos`, and within the
processes of the tests in tests/mmpretrain_adapter and tests/lightly_adapter.
"""

import pytest

from varcon_plugin.commands.attacks.checkpoints import hostile_run, resisted
from varcon_plugin.commands.attacks.entries import ENTRIES
from varcon_plugin.commands.attacks.payloads import PAYLOADS

SYSTEM, TWICE, _, CONFIG = PAYLOADS


@pytest.mark.parametrize(
    ("way", "payload"),
    [
        ("run_experiment.py, a cell", TWICE),
        ("run_experiment.py, a cell", CONFIG),
        ("dist_train.sh --resume PATH", CONFIG),
        ("mmpretrain's train.py load_from", TWICE),
        ("convert_checkpoint.py", SYSTEM),
        ("train_lightly.py --resume", SYSTEM),
    ],
)
def test_nothing_is_executed(way, payload, tmp_path):
    (code, output), executed = hostile_run(ENTRIES[way], payload, tmp_path)
    assert not executed
    assert resisted(ENTRIES[way], payload, code, output), output
