"""``varcon``, as users call it: in a clone, and installed without one."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from paths import REPO

import varcon_plugin
from varcon_plugin.commands import cli, doctor, places, train
from varcon_plugin.commands.cli import COMMANDS, main


def test_every_command_is_listed_and_explains_itself(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    assert done.value.code == 0
    shown = capsys.readouterr().out
    for name, (module, what) in COMMANDS.items():
        assert f"  {name:14} {what}" in shown
        assert callable(
            importlib.import_module(f"varcon_plugin.commands.{module}").main
        )


def test_a_script_of_the_same_name_runs_the_same_module():
    scripts = [*(REPO / "tools").glob("*.py"), *(REPO / "tools/benchmarks").glob("*")]
    called = {
        line.strip()
        for path in scripts
        if path.suffix == ".py"
        for line in path.read_text().splitlines()
    }
    for module in {module for module, _ in COMMANDS.values()}:
        if module not in ("train", "test", "benchmark", "doctor"):
            assert f"from varcon_plugin.commands.{module} import main" in called


@pytest.mark.parametrize(
    "start",
    [
        ["-c", "from varcon_plugin.commands.cli import main; main()", "browse"],
        ["tools/run_experiment.py"],
    ],
    ids=["command", "script"],
)
def test_host_packages_start_in_silence(start):
    """mmcv warns of an operation that is not compiled, mmpretrain of a service."""
    done = subprocess.run(
        [sys.executable, *start, "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPO,
    )
    assert done.stdout.startswith("usage: ")
    assert "OneDL" not in done.stdout
    assert done.stderr == ""


def test_an_unknown_command_names_the_others(capsys):
    with pytest.raises(SystemExit):
        main(["trian"])
    assert "choose from train, test" in capsys.readouterr().err.replace("'", "")


def test_recipes_by_name():
    expected = REPO / "configs" / "varcon_r50_imagenet.py"
    assert places.recipe_path("varcon_r50_imagenet") == expected
    assert places.recipe_path("varcon_r50_imagenet.py") == expected
    assert places.recipe_path(str(expected)) == expected
    baseline = places.recipe_path("baselines/supcon_r50_imagenet")
    assert baseline == REPO / "configs" / "baselines" / "supcon_r50_imagenet.py"
    with pytest.raises(FileNotFoundError, match=r"near it: varcon_r50_imagenet,"):
        places.recipe_path("varcon_r50_imagenot")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "R", "--gpus", "2", "--amp"], ["dist_train.sh", "R", "2", "--amp"]),
        (["test", "R", "c.pth", "--gpus", "4"], ["dist_test.sh", "R", "c.pth", "4"]),
    ],
)
def test_several_gpus_start_the_launcher(monkeypatch, arguments, expected):
    seen = []

    class Replaced(Exception):
        pass

    def execvpe(file, command, environment):
        seen.extend(command)
        first = environment["PATH"].split(os.pathsep)[0]
        assert Path(first) == Path(sys.executable).parent
        raise Replaced

    recipe = str(places.recipe_path("varcon_r18_digits"))
    monkeypatch.setattr(train.os, "execvpe", execvpe)
    command = ["varcon_r18_digits" if a == "R" else a for a in arguments]
    with pytest.raises(Replaced):
        main(command)
    script, *rest = expected
    assert seen[:2] == ["bash", str(REPO / "tools" / script)]
    assert seen[2:] == [recipe if a == "R" else a for a in rest]


def test_a_missing_package_is_one_line_that_names_the_extra(monkeypatch):
    def fail(name):
        raise ModuleNotFoundError("No module named 'lightly'", name="lightly")

    monkeypatch.setattr(cli.importlib, "import_module", fail)
    with pytest.raises(SystemExit, match=r"train-lightly: lightly is not installed"):
        main(["train-lightly"])


def test_doctor_tells_what_is_there_and_what_is_not(monkeypatch):
    shown = doctor.report()
    for part in ("torch 2", "onedl-mmpretrain", "CPU: ", "bfloat16", "- nothing"):
        assert part in shown
    assert str(Path.home()) not in shown

    def missing(name):
        raise ImportError("No module named 'mmpretrain'")

    monkeypatch.setattr(doctor.importlib, "import_module", missing)
    monkeypatch.setitem(doctor.DISTRIBUTIONS, "core", ("torch", "no-such-package"))
    shown = doctor.report()
    assert "no-such-package missing" in shown
    assert 'pip install "varcon-plugin[mmpretrain]" brings what it needs' in shown


@pytest.mark.parametrize(
    ("arguments", "first"),
    [
        (["doctor"], "# varcon doctor"),
        (["quickstart", "--help"], "usage: varcon quickstart"),
        (["train", "varcon_r18_digits", "--help"], "Train a recipe: mmpretrain's"),
    ],
)
def test_nothing_is_said_before_the_command(arguments, first):
    code = "from varcon_plugin.commands.cli import main; main()"
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(first), done.stdout
    assert "MultiScaleDeformableAttention" not in done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel, built and unpacked into a folder of its own."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install"]
    command = [*pip, "--quiet", "--no-deps", "--target", folder, REPO]
    environment = {**os.environ, "REPOSITORY_URL": "https://example.org/varcon"}
    subprocess.run(command, check=True, cwd=folder, env=environment)
    return folder


def test_the_description_has_links_that_work_on_a_package_index(installed):
    (metadata,) = installed.glob("varcon_plugin-*.dist-info/METADATA")
    text = metadata.read_text()
    links = re.findall(r"\]\(([^)#]+)", text)
    at_tag = f"https://example.org/varcon/(?:raw|blob)/v{varcon_plugin.__version__}/"
    ours = [link for link in links if link.startswith("https://example.org")]
    assert ours
    for link in links:
        assert link.startswith("https://"), link
    for link in ours:
        assert (REPO / re.sub(f"^{at_tag}", "", link)).exists(), link
    assert "Project-URL: Repository, https://example.org/varcon" in text


def test_the_wheel_trains_a_recipe_by_name_without_a_clone(installed, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    varcon = [sys.executable, installed / "bin" / "varcon"]

    def run(*arguments):
        done = subprocess.run(
            [*varcon, *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=environment,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "varcon-plugin" in run("--version")
    run("train", "varcon_r18_digits", "--check")
    short = "train_cfg.max_epochs=1"
    run("train", "varcon_r18_digits", "--cfg-options", short)
    assert (tmp_path / "work_dirs/varcon_r18_digits/epoch_1.pth").is_file()
