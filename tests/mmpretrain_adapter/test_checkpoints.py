"""Whatever reads a checkpoint through mmengine reads data, and executes nothing."""

import functools
import http.server
import runpy
import subprocess
import sys
import threading

import mmengine.runner.checkpoint as upstream
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader, Runner
from mmpretrain.registry import MODELS
from paths import REPO

from varcon_plugin.checkpoints.reading import CheckpointError
from varcon_plugin.commands import convert, evaluate
from varcon_plugin.commands.attacks.entries import (
    ENTRIES,
    LIGHTLY,
    MMPRETRAINS_OWN,
    PRETRAINING,
    whole_checkpoint,
)
from varcon_plugin.commands.attacks.payloads import (
    PAYLOADS,
    REFUSED,
    write_hostile,
)
from varcon_plugin.mmpretrain import launch
from varcon_plugin.mmpretrain.checkpoints import load_weights

IN_PROCESS = [
    way
    for way, entry in ENTRIES.items()
    if entry.config != LIGHTLY
    and entry.command.__name__ not in ("two_ranks", "planted_cell")
]

content = functools.cache(whole_checkpoint)


def run(command, monkeypatch):
    """A command of `ENTRIES` in this process; what it ends with."""
    monkeypatch.setattr(sys, "argv", command[1:])
    monkeypatch.chdir(REPO)
    monkeypatch.delenv("LOCAL_RANK", raising=False)  # mmpretrain's script sets it
    monkeypatch.setattr(Runner, "train", load_alone)
    script = command[1]
    try:
        if script == str(MMPRETRAINS_OWN):
            runpy.run_path(script, run_name="__main__")
        elif script.endswith(("train.py", "test.py")):
            launch.main(script.removeprefix("tools/").removesuffix(".py"))
        else:
            {"convert_checkpoint": convert, "evaluate": evaluate}[
                script.removeprefix("tools/").removesuffix(".py")
            ].main(command[2:])
    except (SystemExit, CheckpointError) as stopped:
        return str(stopped)
    return ""


def load_alone(runner):
    """Of `Runner.train`, what reads checkpoints."""
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner._init_model_weights()
    runner.load_or_resume()


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("way", IN_PROCESS)
def test_nothing_is_executed(way, payload, tmp_path, monkeypatch):
    entry = ENTRIES[way]
    path, marker = tmp_path / "hostile.pth", tmp_path / "executed"
    write_hostile(payload, content(entry.config), path, marker)
    (tmp_path / "run").mkdir()
    said = run(entry.command(path, tmp_path / "run"), monkeypatch)
    assert not marker.exists()
    if payload in REFUSED:
        assert "\n" not in said
        assert f"{tmp_path}" in said
        assert "it holds" in said


OWN_SCRIPT = """
import runpy, sys
for argv in {commands}:
    assert "hostile" in str(argv)
    sys.argv = argv
    try:
        runpy.run_path(argv[0], run_name="__main__")
    except ValueError as error:
        print("refused:", error)
"""


def test_mmpretrains_own_script_needs_no_more_than_the_import(tmp_path):
    commands = []
    for payload in PAYLOADS:
        folder = tmp_path / payload / "run"
        folder.mkdir(parents=True)
        path = tmp_path / payload / "hostile.pth"
        write_hostile(payload, content(PRETRAINING), path, folder / "executed")
        entry = ENTRIES["mmpretrain's train.py --resume PATH"]
        commands.append(entry.command(path, folder)[1:])
    script = OWN_SCRIPT.format(commands=commands)
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPO, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("refused: ") == len(REFUSED)
    assert done.stdout.count("resumed epoch: 1, iter: 1") == len(PAYLOADS) - 2
    assert not list(tmp_path.rglob("executed"))


def read(rank, path):
    """What a rank says of a checkpoint."""
    import varcon_plugin.mmpretrain  # noqa: F401

    try:
        CheckpointLoader.load_checkpoint(path)
    except CheckpointError as error:
        return str(error)
    return ""


def test_every_rank_refuses(run_ranks, tmp_path):
    path, marker = tmp_path / "hostile.pth", tmp_path / "executed"
    write_hostile(REFUSED[0], content(PRETRAINING), path, marker)
    for said in run_ranks(read, 2, str(path)):
        assert f"{path} cannot be loaded safely" in said
    assert not marker.exists()


@pytest.fixture
def original(monkeypatch):
    """The loader of local files as mmengine 0.10 has it, in the module of today's."""

    def load_from_local(filename, map_location):
        return torch.load(filename, map_location=map_location)

    as_there = type(load_from_local)(load_from_local.__code__, vars(upstream))
    monkeypatch.delattr(upstream, "_safe_torch_load")
    monkeypatch.setitem(CheckpointLoader._schemes, "", as_there)


@pytest.mark.usefixtures("original")
@pytest.mark.parametrize("payload", PAYLOADS)
def test_the_original_mmengine_executes_nothing_either(payload, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path, marker = tmp_path / "hostile.pth", tmp_path / "executed"
    write_hostile(payload, content(PRETRAINING), path, marker)
    if payload in REFUSED:
        with pytest.raises(CheckpointError, match="cannot be loaded safely: it holds"):
            CheckpointLoader.load_checkpoint(str(path))
    else:
        loaded = CheckpointLoader.load_checkpoint(str(path))
        assert "config" not in loaded["meta"]
    assert not marker.exists()


@pytest.mark.usefixtures("original")
def test_log_buffers_of_the_original_are_read(tmp_path):
    torch.save(content(PRETRAINING), tmp_path / "epoch_1.pth")
    loaded = CheckpointLoader.load_checkpoint(str(tmp_path / "epoch_1.pth"))
    buffer = loaded["message_hub"]["log_scalars"]["train/loss"]
    assert isinstance(buffer, HistoryBuffer)
    assert buffer.statistics("mean") == 1


def test_a_checkpoint_names_no_file_that_is_to_be_deleted(tmp_path):
    theirs = tmp_path / "thesis"
    theirs.mkdir()
    info = {"best_ckpt": str(theirs), "best_ckpt_top1": "/elsewhere/best_top1.pth"}
    saved = content(PRETRAINING) | {"message_hub": {"runtime_info": info}}
    torch.save(saved, tmp_path / "epoch_1.pth")
    loaded = CheckpointLoader.load_checkpoint(str(tmp_path / "epoch_1.pth"))
    best = {"best_ckpt_top1": str(tmp_path / "best_top1.pth")}
    assert loaded["message_hub"]["runtime_info"] == best


class Layer(BaseModule):
    """Two numbers under the names of a backbone."""

    def __init__(self, path):
        super().__init__({"type": "Pretrained", "checkpoint": path})
        self.fc = torch.nn.Linear(2, 1)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves ``tmp_path / "web"``; downloads go to ``tmp_path / "hub"``."""
    (tmp_path / "web").mkdir()
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    handler = functools.partial(Silent, directory=tmp_path / "web")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_downloaded_weights_are_taken(server, tmp_path, monkeypatch):
    layer = torch.nn.Linear(2, 1)
    state = {f"fc.{name}": value for name, value in layer.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "web" / "layer.pth")
    urls = {"layer": f"{server}/layer.pth"}
    monkeypatch.setattr(upstream, "get_torchvision_models", lambda: urls)
    for path in (urls["layer"], "torchvision://layer"):
        model = Layer(path)
        model.init_weights()
        assert torch.equal(model.fc.weight, layer.weight)
        assert load_weights(path).keys() == state.keys()
    with pytest.raises(CheckpointError, match=r"cannot download .*nothing\.pth.*404"):
        load_weights(f"{server}/nothing.pth")


@pytest.mark.parametrize("payload", PAYLOADS)
def test_nothing_in_a_download_is_executed(payload, server, tmp_path):
    marker = tmp_path / "executed"
    path = tmp_path / "web" / "hostile.pth"
    write_hostile(payload, content(PRETRAINING), path, marker)
    refused = payload in REFUSED
    if refused:
        with pytest.raises(CheckpointError, match=r"hostile\.pth cannot be loaded"):
            Layer(f"{server}/hostile.pth").init_weights()
    else:
        Layer(f"{server}/hostile.pth").init_weights()
    assert not marker.exists()


def test_weights_of_torchvision_pass_the_check(server, tmp_path, monkeypatch):
    """They hold a classifier that the backbone lacks."""
    backbone = Config.fromfile(REPO / PRETRAINING).model.backbone
    state = MODELS.build(backbone).state_dict() | {"fc.weight": torch.zeros(1)}
    torch.save(state, tmp_path / "web" / "resnet.pth")
    urls = {"resnet": f"{server}/resnet.pth"}
    monkeypatch.setattr(upstream, "get_torchvision_models", lambda: urls)
    launch.check_checkpoint(backbone, "torchvision://resnet", "")
    with pytest.raises(launch.UsageError, match="missing: backbone"):
        launch.check_checkpoint(backbone, "torchvision://resnet", "backbone")
