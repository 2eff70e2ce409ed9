"""The examples run, and so does the SimCLR script that the README turns into one."""

import re
import runpy
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
README = REPO / "README.md"
PYTORCH = REPO / "examples" / "pytorch" / "varcon.py"
LIGHTNING = REPO / "examples" / "pytorch_lightning" / "varcon.py"
SECTION = "## Change these three lines of your SimCLR script"


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Execute a script for one epoch on a quarter of the pixels; what it printed."""
    monkeypatch.chdir(tmp_path)

    def execute(source):
        for slow, fast in SHORTER.items():
            source = source.replace(slow, fast)
        (tmp_path / "example.py").write_text(source)
        runpy.run_path(str(tmp_path / "example.py"), run_name="__main__")
        return capsys.readouterr().out

    return execute


SHORTER = {
    "image_size=32": "image_size=16",
    "range(8)": "range(1)",
    "max_epochs=8": "max_epochs=1",
}


def changed_lines():
    """(before, after) of each diff of the README's section."""
    section = README.read_text().split(SECTION)[1].split("\n## ")[0]
    return re.findall(r"^-(.*)\n\+(.*)$", section, flags=re.MULTILINE)


def test_plain_pytorch_example_runs(run):
    (loss,) = re.findall(r"epoch: 00, loss: (\S+)", run(PYTORCH.read_text()))
    assert 0 < float(loss) < 4.6  # 2 log 10


def test_lightning_example_runs(run, tmp_path):
    run(LIGHTNING.read_text())
    assert list(tmp_path.glob("**/checkpoints/epoch=0*.ckpt"))


def test_three_changed_lines_turn_simclr_into_the_example(run):
    changes = changed_lines()
    assert len(changes) == 3
    simclr = PYTORCH.read_text()
    for before, after in changes:
        assert simclr.count(after) == 1
        simclr = simclr.replace(after, before)
    assert "VarConLoss" not in simclr
    assert "varcon_plugin.lightly import" not in simclr
    assert "epoch: 00" in run(simclr)  # a SimCLR script that works
    for before, after in changes:
        simclr = simclr.replace(before, after)
    assert simclr == PYTORCH.read_text()  # which the test above runs
