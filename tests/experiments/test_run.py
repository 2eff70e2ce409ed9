"""A cell on the digits, as the command runs it."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location(
    "run_experiment", ROOT / "tools" / "run_experiment.py"
)
tool = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tool)


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
    methods = {256: next(iter(whole.methods.values()))[:1]}
    return {tool.SMALL: type(whole)(whole.question, whole.axis, methods)}


def test_a_run_that_fails_says_where_its_log_is(tmp_path, monkeypatch):
    monkeypatch.setitem(tool.EXPERIMENTS, "batch-size", one_method())
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "mmpretrain.py").write_text("raise ImportError('broken on purpose')\n")
    command = ["batch-size", "--settings", "256", "--seeds", "0"]
    with pytest.raises(
        SystemExit,
        match=r"(?s)training failed.*train\.log ends with.*broken on purpose",
    ):
        tool.main([*command, "--out", str(tmp_path)])
