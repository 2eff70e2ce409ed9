"""Nothing in a checkpoint is executed by the trainer or the evaluation of lightly's."""

import functools
import sys

import pytest
import torch

from varcon_plugin.commands import evaluate, train_lightly
from varcon_plugin.commands.attacks.entries import ENTRIES, LIGHTLY, whole_checkpoint
from varcon_plugin.commands.attacks.payloads import (
    PAYLOADS,
    REFUSED,
    write_hostile,
)
from varcon_plugin.lightly.checkpoint_io import DataCheckpointIO
from varcon_plugin.lightly.evaluation import load_encoder

content = functools.cache(whole_checkpoint)


@pytest.fixture
def hostile(request, tmp_path):
    path, marker = tmp_path / "hostile.ckpt", tmp_path / "executed"
    write_hostile(request.param, content(LIGHTLY), path, marker)
    yield path
    assert not marker.exists()


@pytest.mark.parametrize("hostile", REFUSED, indirect=True)
@pytest.mark.parametrize("way", ["train_lightly.py --resume", "evaluate.py lightly"])
def test_a_hostile_file_is_refused_in_one_line(way, hostile, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    command = ENTRIES[way].command(hostile, tmp_path / "run")
    monkeypatch.setattr(sys, "argv", command[1:])
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    tool = train_lightly if "train" in way else evaluate
    with pytest.raises(SystemExit) as stopped:
        tool.main(command[2:])
    said = stopped.value.code
    assert "\n" not in said
    assert str(tmp_path) in said
    reason = "holds no whole checkpoint; last.ckpt: it holds"
    if "--resume" not in way:
        reason = "cannot be loaded safely: it holds"
    assert reason in said


@pytest.mark.parametrize(
    "hostile", sorted(PAYLOADS.keys() - set(REFUSED)), indirect=True
)
def test_the_rest_is_data(hostile):
    assert DataCheckpointIO().load_checkpoint(hostile)["global_step"] == 0
    assert load_encoder(hostile).about["model"] == "resnet18"


def test_a_checkpoint_cannot_have_another_file_loaded(tmp_path):
    saved = content(LIGHTLY)
    settings = saved["hyper_parameters"]
    kwargs = {**settings["backbone_kwargs"], "checkpoint_path": "/nowhere.pth"}
    saved = {**saved, "hyper_parameters": {**settings, "backbone_kwargs": kwargs}}
    torch.save(saved, tmp_path / "last.ckpt")
    assert load_encoder(tmp_path / "last.ckpt").about["source"] == "lightly"


@pytest.mark.parametrize("bytes_left", [0, 1000])
def test_a_damaged_checkpoint_is_named(bytes_left, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_lightly.py"])
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    torch.save(content(LIGHTLY), last)
    last.write_bytes(last.read_bytes()[:bytes_left])
    expected = r"^train_lightly\.py: .* no whole checkpoint; last\.ckpt: it is "
    with pytest.raises(SystemExit, match=expected):
        train_lightly.main(["--resume", "--output-dir", str(tmp_path)])


def test_another_program_s_checkpoint_is_none(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "epoch_1.pth")
    with pytest.raises(ValueError, match=r"epoch_1\.pth is no checkpoint of Lightning"):
        DataCheckpointIO().load_checkpoint(tmp_path / "epoch_1.pth")
