"""Checkpoints are there whole or not at all, and damage is seen."""

import os
import random
import resource
import subprocess
import sys

import pytest
import torch

from varcon_plugin.checkpoints.writing import damage, save, write_atomically


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "epoch_1.pth"
    torch.manual_seed(0)
    save({"state_dict": {"w": torch.randn(30, 20)}, "meta": {"iter": 3}}, path)
    return path


def test_nothing_but_the_file_is_left(checkpoint):
    assert list(checkpoint.parent.iterdir()) == [checkpoint]
    assert damage(checkpoint) == ""
    assert torch.load(checkpoint, weights_only=True)["meta"] == {"iter": 3}


def test_every_flipped_bit_is_seen_or_makes_no_difference(checkpoint):
    intact = checkpoint.read_bytes()
    tensor = torch.load(checkpoint, weights_only=True)["state_dict"]["w"]
    random.seed(0)
    seen = 0
    for position in random.sample(range(len(intact)), 300):
        broken = bytearray(intact)
        broken[position] ^= 1 << random.randrange(8)
        checkpoint.write_bytes(broken)
        if damage(checkpoint):
            seen += 1
            continue
        try:
            content = torch.load(checkpoint, weights_only=True)
        except RuntimeError:  # flags of zip that torch minds: an error too
            continue
        assert torch.equal(content["state_dict"]["w"], tensor), position
        assert content["meta"] == {"iter": 3}, position
    assert seen > 150


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99, 1])
def test_a_file_cut_short_is_seen(checkpoint, share):
    size = checkpoint.stat().st_size
    os.truncate(checkpoint, int(share * size) if share < 1 else size - 1)
    assert damage(checkpoint)


FULL = """
import resource, sys, torch
from varcon_plugin.checkpoints.writing import save
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    save({"w": torch.zeros(100_000)}, sys.argv[1])
except OSError as error:
    print(error)
"""


def test_a_full_disk_leaves_the_old_file_and_no_part_of_the_new(checkpoint):
    before = checkpoint.read_bytes()
    command = [sys.executable, "-c", FULL, str(checkpoint)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert f"cannot write {checkpoint}: " in run.stdout, run.stderr
    assert run.stdout.count("\n") == 1
    assert checkpoint.read_bytes() == before
    assert list(checkpoint.parent.iterdir()) == [checkpoint]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


KILLED = """
import os, signal, sys
from varcon_plugin.checkpoints.writing import write_atomically
def half(file):
    file.write(b"new")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
write_atomically(sys.argv[1], half)
"""


def test_a_kill_while_writing_leaves_the_old_file(checkpoint):
    before = checkpoint.read_bytes()
    command = [sys.executable, "-c", KILLED, str(checkpoint)]
    assert subprocess.run(command, timeout=60).returncode == -9
    assert checkpoint.read_bytes() == before


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write .*file/epoch_1\.pth: "):
        save({}, tmp_path / "file" / "epoch_1.pth")


def test_another_error_comes_through(tmp_path):
    def fail(file):
        raise KeyError("mine")

    with pytest.raises(KeyError):
        write_atomically(tmp_path / "a", fail)
    assert list(tmp_path.iterdir()) == []
