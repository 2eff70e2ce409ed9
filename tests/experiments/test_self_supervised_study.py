"""The study without labels: labels are not read, it resumes, the table is paired."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from varcon_plugin.commands import self_supervised as tool
from varcon_plugin.experiments.self_supervised import METHODS, Cell, Setting
from varcon_plugin.experiments.self_supervised_run import Pixels, Run, random_crops
from varcon_plugin.experiments.self_supervised_summary import paired

TINY = Setting(images=64, epochs=1, batch_size=32, points=(1,))
WITHOUT_LABELS = [
    "SimCLR",
    "MoCo",
    "image as a class",
    "both, 32 classes",
    "both, teacher of 32 classes",
]


@pytest.fixture(autouse=True)
def _small_classes(monkeypatch):
    small = METHODS["both, teacher"]
    small = type(small)("both", classes=32, teacher=0.9, queue=16, after=0.0)
    monkeypatch.setitem(METHODS, "both, teacher of 32 classes", small)


@pytest.fixture(scope="module")
def pixels():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (84, 3, 32, 32), generator=generator).byte()
    labels = torch.arange(84) % 4
    return Pixels(images[:64], labels[:64], images[64:], labels[64:])


def trained(method, pixels):
    run = Run(Cell(method, TINY, 0.1, seed=0), pixels)
    run._epoch()
    return torch.cat([p.detach().flatten() for p in run.model.parameters()])


@pytest.mark.parametrize("method", [*WITHOUT_LABELS, "supervised VarCon"])
def test_only_the_supervised_ceiling_reads_the_labels(method, pixels):
    shuffled = pixels._replace(labels=pixels.labels.flip(0) // 2)
    same = torch.equal(trained(method, pixels), trained(method, shuffled))
    assert same == (method != "supervised VarCon")


def test_a_result_says_what_was_measured(pixels):
    result = Run(Cell("both, 32 classes", TINY, 0.1, seed=0), pixels).result()
    assert result["curve"] == [(1, result["knn"])]
    assert 0 <= result["linear"] <= 100
    assert result["latent"]["latent_classes"] == 32
    assert 0 < result["latent"]["nmi"] <= 1
    json.dumps(result)


def test_crops_are_views_of_the_image():
    generator = torch.Generator().manual_seed(0)
    flat = torch.full((4, 3, 32, 32), 77, dtype=torch.uint8)
    assert torch.equal(random_crops(flat, generator), flat)
    ramp = torch.arange(32).mul(8).byte().expand(50, 3, 32, 32)
    crops = random_crops(ramp, generator).float()
    widths = crops[:, 0, 0, -1] - crops[:, 0, 0, 0]
    assert widths.min() >= 0.35 * 248  # 20 % of the area, as narrow as 3/4
    assert widths.min() < 0.7 * 248
    assert widths.max() <= 248


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for split, number in (("train", 30), ("test", 12)):
        for name in ("cat", "dog"):
            place = tmp_path / "data" / split / name
            place.mkdir(parents=True)
            for index in range(number):
                noise = rng.integers(256, size=(32, 32, 3), dtype=np.uint8)
                Image.fromarray(noise).save(place / f"{index}.png")
    return tmp_path / "data"


def test_the_command_chooses_trains_resumes_and_tells(folder, tmp_path, capsys):
    out = tmp_path / "study"
    command = ["--data", str(folder), "--out", str(out), "--images", "40"]
    command += ["--held-out", "20", "--epochs", "3", "--choose-epochs", "1"]
    command += ["--choose-at", "20", "--batch-sizes", "20", "10"]
    command += ["--rates", "0.1", "0.2", "--seeds", "0", "1"]
    tool.main([*command, "--methods", "SimCLR", "image as a class"])
    told = capsys.readouterr().out
    assert told.count("choose_") == 4
    assert told.count("run_") == 8
    assert (out / "curves.png").is_file()
    table = (out / "table.md").read_text()
    assert table.count("image as a class") == 2  # a row a batch size
    run = json.loads(next(out.glob("run_simclr_b10_*_seed1.json")).read_text())
    at_20 = json.loads(next(out.glob("run_simclr_b20_*_seed1.json")).read_text())
    ratio = run["learning_rate"] / at_20["learning_rate"]
    assert ratio == pytest.approx(0.5**0.5)
    assert [epoch for epoch, _ in run["curve"]] == [1, 2, 3]

    next(out.glob("run_simclr_b10_*_seed1.json")).unlink()
    tool.main([*command, "--methods", "SimCLR", "image as a class"])
    told = capsys.readouterr().out
    assert told.count("choose_") == 0
    assert told.count("run_") == 1
    again = json.loads(next(out.glob("run_simclr_b10_*_seed1.json")).read_text())
    assert {**again, "seconds": 0} == {**run, "seconds": 0}


def test_pictures_show_test_images_by_latent_class(folder, tmp_path):
    command = ["--data", str(folder), "--out", str(tmp_path), "--images", "32"]
    command += ["--held-out", "20", "--epochs", "1", "--choose-epochs", "1"]
    command += ["--choose-at", "16", "--batch-sizes", "16", "--rates", "0.1"]
    command += ["--seeds", "0", "--methods", "both, teacher of 32 classes"]
    tool.main([*command, "--pictures", "both, teacher of 32 classes"])
    for name in ("tsne.png", "classes.png", "curves.png"):
        shades = np.asarray(Image.open(tmp_path / name)).std()
        assert shades > 10  # something is drawn
    with pytest.raises(SystemExit, match="--pictures must be one of --methods"):
        tool.main([*command, "--pictures", "SimCLR"])


def test_too_few_images_are_told_at_once(folder, tmp_path):
    command = ["--data", str(folder), "--out", str(tmp_path / "study")]
    with pytest.raises(SystemExit, match=r"need 8000 training images, .* has 60"):
        tool.main(command)


def test_differences_are_paired_by_seed():
    def runs(method, values):
        return [
            {"method": method, "seed": seed, "knn": value}
            for seed, value in values.items()
        ]

    simclr = runs("SimCLR", {0: 40.0, 1: 50.0, 2: 60.0})
    ours = runs("ours", {0: 41.0, 1: 51.0, 2: 61.0, 3: 10.0})
    assert paired(ours, simclr, "knn") == "+1.00 ± 0.00"
    assert paired(simclr, simclr, "knn") == ""
    assert paired(ours[3:], simclr, "knn") == ""
