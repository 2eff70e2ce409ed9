"""One owner a folder; children end with their parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from varcon_plugin.checkpoints.ownership import FolderInUseError, owned

HOLD = """
import multiprocessing, sys, time
from varcon_plugin.checkpoints.ownership import owned
with owned(sys.argv[1]):
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    worker.start()
    print(worker.pid, flush=True)
    time.sleep(60)
"""


def test_a_lock_dies_with_its_process_and_not_before(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    worker = int(process.stdout.readline())
    try:
        with (
            pytest.raises(FolderInUseError, match=rf"in use by process {process.pid}"),
            owned(tmp_path),
        ):
            pass
        process.kill()
        process.wait()
        with owned(tmp_path):  # although its data worker still lives
            os.kill(worker, 0)
    finally:
        process.kill()
        process.wait()
        os.kill(worker, signal.SIGKILL)
        process.stdout.close()


CHILD = """
import time
from varcon_plugin.checkpoints.ownership import end_with_parent
end_with_parent()
print("ready", flush=True)
time.sleep(60)
"""
PARENT = """
import os, subprocess, sys
os.environ["VARCON_LAUNCHER_PID"] = str(os.getpid() + int(sys.argv[2]))
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
print(child.pid, child.stdout.readline().decode(), flush=True)
child.wait()
"""


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def started(offset):
    command = [sys.executable, "-c", PARENT, CHILD, str(offset)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    words = process.stdout.readline().split()
    return process, int(words[0]), words[1:]


@pytest.mark.skipif(sys.platform != "linux", reason="a promise of Linux's kernel")
def test_a_killed_parent_takes_its_children_with_it():
    process, child, said = started(0)
    assert said == ["ready"]
    process.kill()
    process.wait()
    process.stdout.close()
    for _ in range(100):
        if not alive(child):
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the child lives on")


@pytest.mark.skipif(sys.platform != "linux", reason="a promise of Linux's kernel")
def test_a_child_that_comes_too_late_ends_at_once():
    process, child, said = started(1)  # as if the parent had another number
    assert said == []
    process.wait(timeout=30)
    process.stdout.close()
    assert not alive(child)
