"""Means and intervals over seeds, and what is written of them."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from varcon_plugin.experiments.grid import EXPERIMENTS, SMALL
from varcon_plugin.experiments.summary import (
    epochs_to_reach,
    estimate,
    summarise,
    write_summary,
)


def test_the_interval_is_students():
    values = [61.0, 63.0, 64.5]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    found = estimate(values)
    assert found.mean - found.interval == pytest.approx(low)
    assert found.mean + found.interval == pytest.approx(high)
    assert str(estimate([61.0])) == "61.00"
    assert str(estimate([])) == "never"


def test_epochs_to_reach_a_level():
    curve = [[2, 40.0], [4, 60.0], [6, 55.0], [8, 80.0]]
    assert epochs_to_reach(curve, 50.0) == 3.0
    assert epochs_to_reach(curve, 60.0) == 4.0
    assert epochs_to_reach(curve, 70.0) == pytest.approx(7.2)
    assert epochs_to_reach(curve, 30.0) == 2
    assert epochs_to_reach(curve, 90.0) is None


def result(method, setting, seed, knn):
    curve = [[1, knn - 20], [2, knn]]
    return {
        "method": method, "setting": setting, "seed": seed, "knn": knn,
        "linear": knn + 1, "class_mean": knn - 1, "curve": curve, "seconds": 10.0,
    }  # fmt: skip


GRID = [
    result(method, setting, seed, knn + seed)
    for method, setting, knn in (
        ("VarCon", 64, 70.0),
        ("VarCon", 128, 80.0),
        ("SupCon", 64, 60.0),
        ("SupCon", 128, 79.0),
    )
    for seed in (0, 1)
]


def test_rows_are_means_over_the_seeds():
    summary = summarise(GRID, level=None)
    assert summary["level"] == pytest.approx(0.95 * 80.5)
    rows = {(row["method"], row["setting"]): row for row in summary["rows"]}
    assert rows["VarCon", 128]["knn"].mean == 80.5
    assert rows["SupCon", 64]["linear"].mean == 61.5
    assert rows["SupCon", 64]["epochs"].mean is None  # no seed reaches it
    assert 1 < rows["VarCon", 128]["epochs"].mean < 2
    assert rows["VarCon", 64]["seeds"] == [0, 1]
    # a mean over the seeds that got there alone would flatter
    assert summarise(GRID, 70.5)["rows"][0]["epochs"].mean is None


def test_groups_have_columns_and_panels_and_a_single_point_no_epochs(tmp_path):
    results = [
        {
            **row, "curve": row["curve"][-1:], "learning_rate": 0.3,
            "knn_frequent": 30.0, "knn_rare": 2.0,
            "linear_frequent": 40.0, "linear_rare": 4.0 + row["seed"],
        }
        for row in GRID
    ]  # fmt: skip
    summary = summarise(results, None)
    table = write_summary(
        "small-batch", EXPERIMENTS["small-batch"][SMALL], summary, "About.", tmp_path
    )
    header = table.splitlines()[0]
    assert "k-NN, frequent | k-NN, rare | linear, frequent | linear, rare" in header
    assert "learning rate" in header
    assert "epochs" not in header
    assert "4.50 ± 6.35 | 0.30" in table
    assert (tmp_path / "plot.png").exists()


@pytest.mark.parametrize("name", ["batch-size", "convergence"])
def test_table_and_picture(name, tmp_path):
    results = GRID if name == "batch-size" else [
        {**row, "setting": None} for row in GRID if row["setting"] == 64
    ]  # fmt: skip
    experiment = EXPERIMENTS[name][SMALL]
    table = write_summary(
        name, experiment, summarise(results, None), "About.", tmp_path
    )
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.reader(file))
    assert len(rows) == 1 + len(results) // 2
    assert rows[1][0] == "VarCon"
    assert rows[1][2] == "70.50 ± 6.35"
    assert "| VarCon |" in table
    assert table in (tmp_path / "table.md").read_text()
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["rows"][0]["knn"] == {
        "mean": 70.5,
        "interval": pytest.approx(6.353, abs=1e-3),
    }
    with Image.open(tmp_path / "plot.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3))) > 20
