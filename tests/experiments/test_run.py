"""A cell on the digits, as the command runs it."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from paths import REPO
from PIL import Image

from varcon_plugin.commands import experiment as tool


def test_the_command_runs_once_and_then_reads(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(tool.EXPERIMENTS, "batch-size", one_method())
    command = ["batch-size", "--settings", "256", "--epochs", "1", "--seeds", "0"]
    command += ["--out", str(tmp_path)]
    tool.main(command)
    assert "| VarCon | 256 |" in capsys.readouterr().out
    done = tmp_path / "cells" / "varcon_256_seed0" / "result.json"
    result = json.loads(done.read_text())
    assert result["curve"][0][0] == 1
    assert 20 < result["knn"] <= 100
    assert 20 < result["linear"] <= 100
    changed = done.stat().st_mtime_ns
    tool.main(command)
    assert done.stat().st_mtime_ns == changed
    with pytest.raises(SystemExit, match="was made with other settings"):
        tool.main([*command, "--epochs", "2"])


def one_method():
    """The batch-size experiment with VarCon alone."""
    whole = tool.EXPERIMENTS["batch-size"][tool.SMALL]
    method = replace(next(iter(whole.methods.values()))[0], options={})
    methods = {256: [method]}
    return {tool.SMALL: type(whole)(whole.question, whole.axis, methods)}


def test_a_run_that_fails_says_where_its_log_is(tmp_path, monkeypatch):
    monkeypatch.setitem(tool.EXPERIMENTS, "batch-size", one_method())
    method = tool.EXPERIMENTS["batch-size"][tool.SMALL].methods[256][0]
    method.options["model.head.loss.temperature"] = -1
    command = ["batch-size", "--settings", "256", "--seeds", "0"]
    with pytest.raises(
        SystemExit,
        match=r"(?s)training failed.*train\.log ends with.*temperature must be > 0",
    ):
        tool.main([*command, "--out", str(tmp_path)])


KILLED = """
import os, signal, sys
from varcon_plugin.commands import experiment
from varcon_plugin.experiments import run

train = run.train

def killed(config, folder, place):
    with (folder / "starts").open("a") as starts:
        print(os.getpid(), file=starts, flush=True)
    {then}

run.train = killed
if __name__ == "__main__":
    sys.argv[0] = "run_experiment.py"
    experiment.main()
"""


def start(script, tmp_path, then):
    """The command, whose cells do ``then`` in place of training."""
    path = tmp_path / script
    path.write_text(KILLED.format(then=then))
    command = ["batch-size", "--settings", "256", "--epochs", "1", "--seeds", "0"]
    command += ["--methods", "VarCon", "--out", str(tmp_path / "out")]
    return subprocess.Popen(
        [sys.executable, path, *command],
        cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def starts(tmp_path):
    """Processes that have begun to train the cell."""
    file = tmp_path / "out" / "cells" / "varcon_256_seed0" / "starts"
    return file.read_text().split() if file.exists() else []


def test_a_killed_cell_goes_on_once(tmp_path):
    """The operating system kills what takes too much memory."""
    process = start("killed.py", tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "run_experiment.py: training was killed twice by SIGKILL; see " in output
    assert "Traceback" not in output
    assert len(starts(tmp_path)) == 2


def test_a_killed_command_takes_its_cells_along(tmp_path):
    process = start("waits.py", tmp_path, "signal.pause()")
    wait_until(lambda: starts(tmp_path))
    process.kill()
    process.wait()
    (cell,) = starts(tmp_path)
    wait_until(lambda: not running(int(cell)))
    process.stdout.close()


def wait_until(condition):
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.1)
    raise TimeoutError


def running(pid):
    """Whether there is such a process, and no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_damaged_result_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tools/run_experiment.py"])
    monkeypatch.setitem(tool.EXPERIMENTS, "batch-size", one_method())
    done = tmp_path / "cells" / "varcon_256_seed0" / "result.json"
    done.parent.mkdir(parents=True)
    done.write_text('{"config": ')
    command = ["batch-size", "--settings", "256", "--seeds", "0"]
    with pytest.raises(SystemExit, match=rf"^\S+: {done} is damaged .*: delete it$"):
        tool.main([*command, "--out", str(tmp_path)])


@pytest.fixture
def folder(tmp_path):
    """Three classes of noise around a colour of their own."""
    generator = np.random.default_rng(0)
    for split, number in (("train", 20), ("test", 4)):
        for label in range(3):
            place = tmp_path / "images" / split / str(label)
            place.mkdir(parents=True)
            for i in range(number):
                pixels = generator.integers(0, 200, (16, 16, 3), dtype=np.uint8)
                pixels[..., label] += 50
                Image.fromarray(pixels).save(place / f"{i}.png")
    return tmp_path / "images"


def test_learning_rates_are_chosen_on_held_out_images(folder, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["small-batch", "--data", str(folder), "--recipe", "r18_image_folder16"]
    command += ["--settings", "8", "--methods", "SupCon", "--seeds", "1", "--jobs", "2"]
    command += ["--epochs", "2", "--trial-epochs", "1", "--imbalance", "2"]
    command += ["--learning-rates", "0.1", "10", "--out", str(out)]
    tool.main(command)
    assert "| SupCon | 8 |" in capsys.readouterr().out
    trials = [json.loads(f.read_text()) for f in out.glob("choosing/cells/*/*.json")]
    assert sorted(trial["learning_rate"] for trial in trials) == [0.1, 10]
    assert all(trial["curve"][-1][0] == 1 for trial in trials)
    assert not any("linear" in trial for trial in trials)
    (place,) = (out / "cells").iterdir()
    result = json.loads((place / "result.json").read_text())
    best = max(trials, key=lambda t: (t["per_class"], -t["learning_rate"]))
    assert result["learning_rate"] == best["learning_rate"]
    assert result["curve"][-1][0] == 2
    assert {"knn_rare", "knn_frequent", "linear_rare", "linear_frequent"} <= {*result}
    assert "20 to 10 training images a class" in (out / "table.md").read_text()


def test_parts_of_training_sets_are_parts_of_a_folder(capsys):
    with pytest.raises(SystemExit):
        tool.main(["small-batch", "--learning-rates", "0.3", "1"])
    assert "give --data" in capsys.readouterr().err
