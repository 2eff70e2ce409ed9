"""The frame of `make chaos`; what the attacks try is tested where it is defended."""

import random
from pathlib import Path

import pytest

from varcon_plugin.commands import chaos
from varcon_plugin.commands.attacks import damage
from varcon_plugin.commands.attacks.registry import ATTACKS, Attack, Trial


def survives(arena):
    assert not list(arena.folder.iterdir())
    for number in range(arena.rounds):
        yield Trial(f"number {arena.chance.randrange(10)} of {number}", survived=True)


def breaks(arena):
    yield Trial("a file", survived=False, seen="it was executed")
    raise OSError("no arena")


@pytest.fixture
def attacks(monkeypatch):
    monkeypatch.setattr(chaos, "ATTACKS", {})
    for run in (survives, breaks):
        chaos.ATTACKS[run.__name__] = Attack(run.__name__, "nothing", run)


@pytest.mark.usefixtures("attacks")
def test_the_table_says_what_survived(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        chaos.main(["--rounds", "3", "--out", str(tmp_path)])
    assert stopped.value.code == 1
    table = (tmp_path / "table.md").read_text()
    assert "| nothing (`survives`) | 3 | 3 |" in table
    assert "| nothing (`breaks`) | 2 | 0 |" in table
    assert "breaks, a file: did not survive\n    it was executed\n" in table
    assert "OSError: no arena" in table
    assert table in capsys.readouterr().out


@pytest.mark.usefixtures("attacks")
def test_a_part_can_be_chosen(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        chaos.main(["survives", "--out", str(tmp_path)])
    assert stopped.value.code == 0
    assert "breaks" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        chaos.main(["nonsense"])
    assert "no attack nonsense" in capsys.readouterr().err


def test_every_attack_is_listed_with_its_promise(capsys):
    chaos.main(["--list"])
    listed = capsys.readouterr().out
    assert "executed-code" in listed
    assert all(attack.promise in listed for attack in ATTACKS.values())


def test_damaged_caches_survive_their_attack(tmp_path):
    arena = chaos.Arena(tmp_path, 2, random.Random(0))
    trials = list(ATTACKS["damaged-caches"].run(arena))
    assert len(trials) == 40
    assert [trial for trial in trials if not trial.survived] == []
    assert sum("is damaged" in trial.seen for trial in trials) > 20


def test_what_goes_wrong_silently_is_noticed(tmp_path):
    (tmp_path / "file").write_bytes(bytes(100))
    arena = chaos.Arena(tmp_path, 1, random.Random(0))
    trials = list(damage.damaged(tmp_path / "file", Path.read_bytes, arena))
    wrong = [trial for trial in trials if not trial.survived]
    assert wrong
    assert {trial.seen for trial in wrong} == {"it was read, with other content"}
    assert all(trial.what.startswith(("cut", "a bit")) for trial in wrong)


def test_chance_is_seeded(tmp_path):
    trials = [
        list(survives(chaos.Arena(tmp_path, 5, random.Random(1)))) for _ in range(2)
    ]
    assert trials[0] == trials[1]
