import argparse
import os

import pytest
import torch

from varcon_plugin.checkpoints.reading import IGNORED, load_state_dict

WEIGHTS = {"conv.weight": torch.arange(6.0), "norm.bias": torch.zeros(2)}


def save(content, folder):
    path = folder / "checkpoint.pth"
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: {"state_dict": w, "meta": {"epoch": 1}},
        lambda w: {"model": {f"module.{name}": value for name, value in w.items()}},
        lambda w: {"model": w, "opt": argparse.Namespace(lr=0.5)},
    ],
    ids=["plain", "mmengine", "ddp", "namespace beside"],
)
def test_weights_are_found(wrap, tmp_path):
    loaded = load_state_dict(save(wrap(WEIGHTS), tmp_path))
    assert loaded.keys() == WEIGHTS.keys()
    assert all(torch.equal(loaded[name], WEIGHTS[name]) for name in WEIGHTS)


def test_mmengine_log_buffers_are_skipped(tmp_path):
    from mmengine.logging import HistoryBuffer

    buffer = HistoryBuffer([1.0, 2.0], [1, 1])
    content = {"state_dict": WEIGHTS, "message_hub": {"loss": buffer}}
    path = save(content, tmp_path)
    assert load_state_dict(path).keys() == WEIGHTS.keys()
    allowed = [(os.abort, name) for name in IGNORED]  # not even what others allow
    with torch.serialization.safe_globals(allowed):
        before = set(torch.serialization.get_safe_globals())
        assert load_state_dict(path).keys() == WEIGHTS.keys()
        assert set(torch.serialization.get_safe_globals()) == before


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def test_code_in_a_checkpoint_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save({"state_dict": WEIGHTS, "x": Hostile()}, tmp_path)
    with pytest.raises(ValueError, match=r"holds objects of posix\.mkdir"):
        load_state_dict(path)
    assert not (tmp_path / "owned").exists()


def test_other_files_are_refused(tmp_path):
    text = tmp_path / "text.pth"
    text.write_text("not a checkpoint")
    with pytest.raises(ValueError, match=r"not a checkpoint of torch\.save"):
        load_state_dict(text)
    with pytest.raises(ValueError, match="holds no weights"):
        load_state_dict(save({"epoch": 1}, tmp_path))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_state_dict(tmp_path / "nowhere.pth")
