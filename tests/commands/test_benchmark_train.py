"""varcon benchmark train times the parts of a step; ratios are those within rounds."""

import time
from pathlib import Path

import pytest
from mmengine.config import Config
from paths import REPO

from varcon_plugin.commands.benchmarks import train, training_run
from varcon_plugin.commands.benchmarks.training_run import BACKWARD, DATA, PARTS, REST


class Work:
    def outer(self):
        self.inner()
        return "done"

    def inner(self):
        pass


@pytest.fixture
def clock(monkeypatch):
    """A clock of a second a look, watching a part inside another."""
    ticks = iter(range(1000))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    return training_run.Clock(synchronise=False)


def test_a_part_inside_another_is_its_own_and_the_parts_add_up(clock):
    work = Work()
    clock.watch(work, "inner", BACKWARD)
    clock.watch(work, "outer", DATA)
    assert work.outer() == "done"
    clock.mark()
    # looks: into outer, into inner, out of inner, out of outer, and the last
    assert clock.seconds == {REST: 2, DATA: 2, BACKWARD: 1}
    assert sum(clock.seconds.values()) == clock.last - clock.start


def test_waiting_for_data_is_charged_and_batches_come_through(clock):
    assert list(training_run.WatchedLoader([1, 2], clock)) == [1, 2]
    assert clock.seconds[DATA] == 3  # two batches, and the end


def test_warm_up_is_forgotten(clock):
    clock.mark()
    clock.restart()
    clock.mark()
    assert sum(clock.seconds.values()) == clock.last - clock.start == 1


def test_the_rival_has_the_recipes_network_crops_batch_and_images():
    cfg = Config.fromfile(REPO / "configs" / "varcon_r18_image_folder.py")
    cfg.train_dataloader.dataset.data_root = "photos"
    rival = training_run.simclr(cfg)
    assert rival.model.type == "SimCLR"
    assert rival.model.backbone == cfg.model.backbone
    assert rival.train_dataloader.batch_size == cfg.train_dataloader.batch_size
    assert rival.train_dataloader.dataset.data_root == "photos"
    assert rival.train_dataloader.dataset.type == cfg.train_dataloader.dataset.type
    assert training_run.crop_size(rival) == training_run.crop_size(cfg) == 32
    steps = [step.type for step in rival.train_dataloader.dataset.pipeline]
    assert steps == ["LoadImageFromFile", "MultiView", "PackInputs"]
    assert rival.optim_wrapper.optimizer.type == "LARS"


def test_the_report_has_medians_and_ratios_within_rounds(tmp_path):
    def record(seconds):
        return {
            "images": 100,
            "seconds": seconds,
            "parts": dict.fromkeys(PARTS, seconds),
        }

    records = {
        "ours": [record(1.0), record(2.0), record(4.0)],  # a machine that slows down
        "theirs": [record(3.0), record(6.0), record(12.0)],
    }
    text = train.report(records, "cpu")
    assert "| ours | 50 (25 to 100) | 1.00 |" in text
    assert "| theirs | 17 (8 to 33) | 3.00 |" in text
    train.draw(records, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 5000


def test_a_contestant_that_fails_ends_the_benchmark_with_what_it_said(monkeypatch):
    monkeypatch.setattr(
        "sys.argv", ["train", "missing.py", "--data", "x", "--steps", "1"]
    )
    args = train.parse_args()
    with pytest.raises(SystemExit, match=r"missing\.py"):
        train.measure(("recipe", Path("missing.py")), args, False)


def test_plain_is_the_recipe_with_mmpretrains_pipeline_in_float32():
    cfg = Config.fromfile(REPO / "configs" / "varcon_r18_image_folder.py")
    plain = training_run.plain(Config.fromfile(cfg.filename))
    assert plain.optim_wrapper.type == "OptimWrapper"
    assert plain.optim_wrapper.optimizer == cfg.optim_wrapper.optimizer
    assert not plain.model.channels_last
    crop = plain.train_dataloader.dataset.pipeline[1]["transforms"][0][0]
    ours = cfg.train_dataloader.dataset.pipeline[0]
    assert crop["crop_ratio_range"] == ours["crop_ratio_range"]
    assert training_run.crop_size(plain) == 32
    assert plain.data_preprocessor.mean == cfg.data_preprocessor.mean
