"""The benchmarks of a spread bank measure, calculate and write their reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from varcon_plugin import MomentumCentroids
from varcon_plugin.commands.benchmarks import many_classes, sharded


def test_report(tmp_path: Path) -> None:
    sizes = ["--classes", "50", "--ranks", "2", "--negatives", "10"]
    sharded.main([*sizes, "--samples", "8", "--dim", "4", "--out", str(tmp_path)])
    (record,) = json.loads((tmp_path / "report.json").read_text())
    assert record["ms"] > 0
    assert record["rows"] == 25
    assert "| 50 | 2 | 10 | 25 |" in (tmp_path / "report.md").read_text()


def test_bytes_on_paper_are_those_of_a_bank(capsys: pytest.CaptureFixture[str]) -> None:
    bank = vars(MomentumCentroids(1000, 16)).items()
    held = sum(x.nbytes for name, x in bank if isinstance(x, torch.Tensor))
    steps = 8
    for ranks in (1, 4):
        found = sharded.on_paper(sharded.Setting(1000, ranks, 32, 16))
        assert found["bank"] * ranks == found["whole"] == held - steps
        assert found["operations"] == 4 * 32 * 1000 * 16  # the same for any ranks
    assert sharded.on_paper(sharded.Setting(1000, 1, 32, 16))["traffic"] == 0
    sharded.main(["--paper"])
    assert "| 10,000,000 | 8 | 512 | 10% |" in capsys.readouterr().out


@pytest.fixture
def noise_folder(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "test"):
        for name in ("a", "b"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for index in range(12):
                pixels = torch.randint(256, (32, 32, 3), generator=generator)
                Image.fromarray(pixels.byte().numpy()).save(folder / f"{index}.png")
    return tmp_path / "data"


def test_every_image_its_own_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise_folder: Path
) -> None:
    arguments = ["--data", str(noise_folder), "--out", str(tmp_path / "out")]
    small = ["--classes", "24", "--test-images", "20", "--batch-size", "8"]
    many_classes.main([*arguments, *small, "--epochs", "2", "--seeds", "0"])
    file = tmp_path / "out" / "report.json"
    records = {record["arm"]: record for record in json.loads(file.read_text())}
    assert list(records) == list(many_classes.ARMS)
    whole, spread = records["whole"], records["sharded"]
    assert spread["loss"] == pytest.approx(whole["loss"], rel=1e-3)
    assert records["batch"]["loss"] != pytest.approx(whole["loss"], rel=1e-3)
    monkeypatch.setattr(many_classes, "cell", None)  # all are there: none is run again
    many_classes.main([*arguments, *small, "--epochs", "2", "--seeds", "0"])
    report = (tmp_path / "out" / "report.md").read_text()
    assert "C = 24 images, batches of 8 with two views each, 2 epochs" in report


def test_learning_rates_are_chosen_on_images_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise_folder: Path
) -> None:
    accuracies = iter((50.0, 70.0, 60.0, 40.0, 30.0, 20.0, 10.0))
    asked: list[tuple[many_classes.Plan, int]] = []

    def cell(plan: many_classes.Plan, data: many_classes.Data) -> dict[str, Any]:
        asked.append((plan, len(data.held_out().images)))
        found = {"knn": next(accuracies), "loss": 1.0, "seconds": 1.0}
        return {**plan._asdict(), "classes": data.classes, **found}

    monkeypatch.setattr(many_classes, "cell", cell)
    arguments = ["--data", str(noise_folder), "--out", str(tmp_path / "out")]
    arguments += ["--classes", "12", "--test-images", "10", "--batch-size", "4"]
    arguments += ["--arms", "whole", "sharded", "batch", "--seeds", "0"]
    rates = ["--learning-rates", "0.1", "0.2", "--trial-epochs", "1"]
    many_classes.main([*arguments, *rates, "--epochs", "2"])
    plans = [plan for plan, _ in asked]
    assert {held_out for _, held_out in asked} == {10}
    assert [(plan.arm, plan.epochs) for plan in plans if plan.trial] == [
        *(("whole", 1),) * 2,
        *(("batch", 1),) * 2,
    ]
    final = {plan.arm: plan.learning_rate for plan in plans if not plan.trial}
    assert final == {"whole": 0.2, "sharded": 0.2, "batch": 0.1}
