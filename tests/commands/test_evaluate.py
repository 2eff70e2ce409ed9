"""tools/evaluate.py and tools/compare.py, as users call them."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from PIL import Image

from varcon_plugin.commands import compare, evaluate
from varcon_plugin.evaluation import report as report_module

REPO = Path(__file__).parents[2]
LINEAR = REPO / "configs" / "varcon_r18_digits_linear.py"
SCHEMA = json.loads(
    Path(report_module.__file__).with_name("report.schema.json").read_text()
)
PRETRAIN = REPO / "configs" / "varcon_r18_digits.py"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of the pretraining config, untrained."""
    cfg = Config.fromfile(PRETRAIN)
    init_default_scope("mmpretrain")
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    path = tmp_path_factory.mktemp("checkpoint") / "epoch_1.pth"
    torch.save({"meta": {}, "state_dict": model.state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def report(checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "untrained"
    arguments = ["--protocols", "knn", "few-shot", "--export", "npz", "--shots", "1"]
    evaluate.main([str(LINEAR), str(checkpoint), "--out", str(out), *arguments])
    return out


def test_config_and_checkpoint_to_report(report):
    found = json.loads((report / "report.json").read_text())
    assert found["model"]["source"] == "mmpretrain"
    assert found["model"]["dimension"] == 128
    assert found["data"]["train"] == 1347
    assert {p.name for p in report.iterdir()} == {
        "features", "features_test.npz", "features_train.npz", "few_shot.png",
        "report.csv", "report.json", "report.md", "tsne.png",
    }  # fmt: skip


def test_the_pretraining_config_gives_the_same_features(report, checkpoint, tmp_path):
    """Its test pipeline is derived from its crop, its data named on the side."""
    data = ["--data", str(LINEAR), "--protocols", "knn"]
    evaluate.main([str(PRETRAIN), str(checkpoint), "--out", str(tmp_path), *data])
    ours = json.loads((tmp_path / "report.json").read_text())["protocols"]["knn"]
    theirs = json.loads((report / "report.json").read_text())["protocols"]["knn"]
    assert ours == theirs


def test_timm_on_digits(tmp_path, capsys):
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), weights)
    evaluate.main(
        ["timm:test_resnet", str(weights), "--data", "digits", "--image-size", "32",
         "--protocols", "knn", "--k", "20", "--out", str(tmp_path / "out")]
    )  # fmt: skip
    said = capsys.readouterr().out
    assert re.search(r"\| k-NN \(k=20, T=0.07\) top-1 \| \d\d\.\d\d \|", said)
    assert "(k=10" not in said


def test_weights_without_a_config_have_their_normalisation_said(tmp_path, capsys):
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), weights)
    common = ["timm:test_resnet", str(weights), "--data", "digits", "--image-size",
              "32", "--protocols", "knn", "--k", "20"]  # fmt: skip
    evaluate.main([*common, "--out", str(tmp_path / "a")])
    assumed = "own mean (0.5, 0.5, 0.5), standard deviation (0.5, 0.5, 0.5)"
    assert assumed in capsys.readouterr().err
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    jsonschema.validate(report, SCHEMA)
    (note,) = report["notes"]
    assert note in (tmp_path / "a" / "report.md").read_text()
    pixels = [*("--mean", "0.1", "0.2", "0.3"), *("--std", "1", "1", "1")]
    evaluate.main([*common, "--out", str(tmp_path / "b"), *pixels])
    assert "does not say" not in capsys.readouterr().err
    said = json.loads((tmp_path / "b" / "report.json").read_text())
    assert said["model"]["normalisation"].startswith("mean (0.1, 0.2, 0.3)")
    assert said["model"]["fingerprint"] != report["model"]["fingerprint"]


def test_configs_say_their_normalisation_themselves(checkpoint, tmp_path, capsys):
    pixels = ["--mean", "0.1", "0.2", "0.3"]
    message = said(capsys, LINEAR, checkpoint, "--out", tmp_path, *pixels)
    assert "--mean and --std: only timm models need to be told" in message


def test_lightly_checkpoint_on_digits(tmp_path):
    from varcon_plugin.lightly import VarCon

    module = VarCon(
        8, 10, backbone="resnet18", backbone_kwargs={"channels": [4, 4, 8, 8]},
        image_size=16,
    )  # fmt: skip
    path = tmp_path / "last.ckpt"
    content = {"hyper_parameters": dict(module.hparams)}
    torch.save({"state_dict": module.state_dict(), **content}, path)
    evaluate.main(
        ["lightly", str(path), "--data", "digits", "--protocols", "knn",
         "--out", str(tmp_path / "out")]
    )  # fmt: skip
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["model"]["source"] == "lightly"
    assert found["model"]["dimension"] == 8
    assert "16" in found["data"]["transform"]


def test_two_processes_give_the_report_of_one(report, checkpoint, tmp_path):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        "--nproc-per-node", "2", "tools/evaluate.py", LINEAR, checkpoint,
        "--protocols", "knn", "--out", tmp_path,
    ]  # fmt: skip
    run = subprocess.run(
        [str(part) for part in command],
        cwd=REPO,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("| metric |") == 1
    ours = json.loads((tmp_path / "report.json").read_text())["protocols"]["knn"]
    theirs = json.loads((report / "report.json").read_text())["protocols"]["knn"]
    assert ours == theirs


def on_two_processes(*arguments):
    """Exit code and all output of the command under the launcher of `tools/`."""
    command = [
        *(sys.executable, "-m", "varcon_plugin.commands.ranks", "--standalone"),
        *("--nproc-per-node", "2", "tools/evaluate.py", *arguments),
    ]
    done = subprocess.run(
        [str(part) for part in command],
        cwd=REPO,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout


def test_a_damaged_cache_ends_all_processes_and_is_named_once(
    report, checkpoint, tmp_path
):
    cache = shutil.copytree(report / "features", tmp_path / "features")
    for path in cache.iterdir():
        path.write_bytes(path.read_bytes()[:-9])
    code, said = on_two_processes(
        *(LINEAR, checkpoint, "--protocols", "knn", "--out", tmp_path / "out"),
        *("--cache", cache),
    )
    assert code == 1
    assert "Traceback" not in said
    assert len(re.findall(r"^evaluate.py: \S+ is damaged \(", said, re.M)) == 1


def test_an_image_of_one_process_that_is_broken_ends_all_and_is_named_once(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(2):
                path = tmp_path / split / name / f"{number}.png"
                Image.new("RGB", (32, 32), (9, 90, 200)).save(path)
    broken = tmp_path / "train" / "cat" / "1.png"  # read by the second process
    broken.write_bytes(broken.read_bytes()[:-30])
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), weights)
    code, said = on_two_processes(
        *("timm:test_resnet", weights, "--data", tmp_path, "--image-size", "32"),
        *("--protocols", "knn", "--out", tmp_path / "out"),
    )
    assert code == 1
    assert "Traceback" not in said
    assert said.count(f"evaluate.py: image {broken} cannot be used") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["CONFIG", "nope.pth"], "checkpoint not found: nope.pth"),
        (["nope.py", "CHECKPOINT"], "config not found: nope.py"),
        (
            ["timm:nope", "CHECKPOINT", "--data", "digits"],
            "name of a timm model, got 'nope'",
        ),
        (["timm:test_resnet", "CHECKPOINT", "--data", "digits"], "missing: conv1."),
        (["CONFIG", "CHECKPOINT", "--data", "/nowhere"], "image folder not found"),
        (
            ["CONFIG", "CHECKPOINT", "--k", "1348"],
            "--k 1348 is more than the 1347 training images",
        ),
        (
            ["CONFIG", "CHECKPOINT", "--protocols", "few-shot", "--shots", "200"],
            "--shots 200 is more than the 131 training images of the rarest class",
        ),
        (["CONFIG", "CHECKPOINT", "--protocols", "transfer"], "give --transfer"),
        (["PRETRAIN", "CHECKPOINT"], "no test_dataloader or val_dataloader"),
        (
            ["CONFIG", "CHECKPOINT", "--cfg-options", "model.backbone.depth=34"],
            r"missing: layer1\.2\.",
        ),
    ],
)
def test_a_mistake_is_told_in_one_line(
    arguments, message, checkpoint, report, tmp_path, monkeypatch
):
    monkeypatch.setattr(sys, "argv", ["tools/evaluate.py"])
    known = {"CONFIG": LINEAR, "CHECKPOINT": checkpoint, "PRETRAIN": PRETRAIN}
    arguments = [str(known.get(argument, argument)) for argument in arguments]
    arguments += ["--out", str(tmp_path), "--cache", str(report / "features")]
    with pytest.raises(SystemExit, match=message) as stopped:
        evaluate.main(arguments)
    assert str(stopped.value).startswith("evaluate.py: ")
    assert "\n" not in str(stopped.value)


def test_compare(report, tmp_path, capsys):
    found = json.loads((report / "report.json").read_text())
    found["protocols"]["knn"]["results"][0]["top1"] = 12.5
    found["data"]["fingerprint"] = "other"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "report.json").write_text(json.dumps(found))
    table = tmp_path / "table.csv"
    compare.main([str(report), str(tmp_path / "other"), "--csv", str(table)])
    said = capsys.readouterr().out
    assert "| metric | untrained | other |" in said
    assert re.search(r"\| k-NN \(k=10, T=0.07\) top-1 \| \d+\.\d\d \| 12.50 \|", said)
    assert "Not the same images" in said
    assert table.read_text().startswith("metric,untrained,other")


def test_compare_names_a_file_that_is_no_report(tmp_path):
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(SystemExit, match="is not a report of tools/evaluate"):
        compare.main([str(tmp_path)])


def said(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        evaluate.main([str(argument) for argument in arguments])
    assert "\n" not in str(stopped.value.code)
    return str(stopped.value.code)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--k", "5000"], "--k 5000 is more than the 1347 training images"),
        (["--shots", "1", "900"], "--shots 900 is more than the "),
        (["--protocols", "knn", "transfer"], "transfer: it needs datasets to transfer"),
        (["--protocols", "few-shot", "--draws", "1"], "few-shot: --draws 1 gives no"),
        (
            ["--protocols", "corruption", "--imagenet-c", "/nowhere"],
            "corruption: --imagenet-c: there is no folder /nowhere",
        ),
    ],
)
def test_needs_are_checked_before_anything_is_computed(
    flags, message, checkpoint, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(evaluate.Evaluation, "run", None)
    assert message in said(capsys, LINEAR, checkpoint, "--out", tmp_path, *flags)


def test_a_report_that_cannot_be_written_is_said_first(checkpoint, tmp_path, capsys):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "report"
    assert "--out: cannot write to" in said(capsys, LINEAR, checkpoint, "--out", out)


def test_defaults_are_cut_to_the_data_with_a_note(checkpoint, tmp_path, capsys):
    options = ["--cfg-options", "train_dataloader.dataset.indices=60"]
    arguments = ["--out", str(tmp_path), "--protocols", "knn", "few-shot"]
    evaluate.main([str(LINEAR), str(checkpoint), *arguments, *options])
    note = "--k 100 is more than the 60 training images: --k 10 20 instead"
    assert note in capsys.readouterr().err
    found = json.loads((tmp_path / "report.json").read_text())
    assert note in found["notes"]
    assert {row["k"] for row in found["protocols"]["knn"]["results"]} == {10, 20}


def test_a_protocol_that_fails_leaves_the_report_of_the_others(
    checkpoint, tmp_path, capsys, monkeypatch
):
    def fail(self):
        raise ValueError("no memory left")

    monkeypatch.setattr(evaluate.Evaluation, "linear", fail)
    arguments = ["--out", tmp_path, "--protocols", "knn", "linear"]
    message = said(capsys, LINEAR, checkpoint, *arguments)
    assert message.endswith("linear failed: no memory left")
    assert [*json.loads((tmp_path / "report.json").read_text())["protocols"]] == ["knn"]
