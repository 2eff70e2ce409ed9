import argparse
import os

import numpy as np
import pytest
import torch

from varcon_plugin.checkpoints.plain import STAND_INS, LogBuffer
from varcon_plugin.checkpoints.reading import (
    CheckpointError,
    load_state_dict,
    read_checkpoint,
)

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
    allowed = [(os.abort, name) for name in STAND_INS]  # not even what others allow
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


def test_what_mmengine_saves_beside_weights_comes_back_as_data(tmp_path):
    from mmengine.logging import HistoryBuffer

    grid = np.arange(6, dtype=">i4").reshape(2, 3, order="F")
    buffer = HistoryBuffer([1.0, 2.0], [1, 3])
    shared = [np.float64(0.5)]
    content = {"grid": (grid, "text"), "loss": buffer, "a": shared, "b": shared}
    content |= {"texts": np.array(["no numbers"])}
    read = read_checkpoint(save(content, tmp_path))
    assert read["grid"][0].dtype == grid.dtype
    assert np.array_equal(read["grid"][0], grid)
    assert isinstance(read["loss"], LogBuffer)
    assert read["loss"].values.tolist() == [1.0, 2.0]
    assert read["loss"].counts.tolist() == [1, 3]
    assert read["loss"].max_length == 1_000_000
    assert read["a"] is read["b"]
    assert read["a"] == [0.5]
    assert read["texts"] is None


def test_parts_that_hold_each_other_are_visited_once(tmp_path):
    nested = (np.zeros(1),)
    for _ in range(64):
        nested = (nested, nested)
    ring = []
    ring.append(ring)
    content = {**WEIGHTS, "nested": nested, "ring": ring}
    assert load_state_dict(save(content, tmp_path)).keys() == WEIGHTS.keys()


def test_a_log_buffer_must_be_one(tmp_path):
    from mmengine.logging import HistoryBuffer

    buffer = HistoryBuffer([1.0], [1])
    buffer._log_history = "no numbers"
    path = save({**WEIGHTS, "loss": buffer}, tmp_path)
    with pytest.raises(CheckpointError, match="holds a log buffer that is none"):
        load_state_dict(path)


@pytest.mark.parametrize("cut", [0, 10, 400, -1])
def test_a_damaged_file_is_named(cut, tmp_path):
    path = save(WEIGHTS, tmp_path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match=rf"{path.name} cannot be loaded safely"):
        read_checkpoint(path)


def test_code_in_the_older_format_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"x": Hostile()}, "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"holds objects of posix\.mkdir"):
        read_checkpoint(tmp_path / "old.pth")
    assert not (tmp_path / "owned").exists()


def test_flipped_bits_in_a_tensor_are_refused(tmp_path):
    path = tmp_path / "flipped.pth"
    tensor = torch.full((100,), 3.0)
    torch.save({"state_dict": {"w": tensor}}, path)
    data = bytearray(path.read_bytes())
    data[data.index(tensor.numpy().tobytes()) + 2] ^= 3
    path.write_bytes(data)
    assert not torch.equal(torch.load(path)["state_dict"]["w"], tensor)  # torch's way
    with pytest.raises(CheckpointError, match=r"flipped.pth is damaged: its checksum"):
        read_checkpoint(path)
