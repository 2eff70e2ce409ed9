"""tools/benchmarks/benchmark_centroids.py measures and writes its report."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from varcon_plugin.commands.benchmarks import centroids


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The tool, which measures in this process and repeats nothing."""
    monkeypatch.setattr(centroids, "SECONDS", 0)
    monkeypatch.setattr(centroids, "in_own_process", centroids.measure)
    return centroids


def test_report(tool: ModuleType, tmp_path: Path) -> None:
    sizes = ["--classes", "20", "4000", "--negatives", "10", "--samples", "8"]
    tool.main([*sizes, "--dim", "4", "--out", str(tmp_path)])
    records = json.loads((tmp_path / "report.json").read_text())
    assert [(r["classes"], r["negatives"]) for r in records] == [
        (20, None),
        (20, 10),
        (4000, None),
        (4000, 10),
    ]
    assert all(record["ms"] > 0 for record in records)
    rows = 4000 * (2 * 4 * 4 + 8 + 1)  # means and units of 4 numbers, count, seen
    assert records[-1]["bank_mb"] == pytest.approx((rows + 8) / 2**20)
    report = (tmp_path / "report.md").read_text()
    assert "| C | bank | all classes | num_negatives=10 |" in report
    assert "| 4,000 | 0.2 MB |" in report


def test_growth_is_that_of_the_upper_half(tool: ModuleType) -> None:
    records = [{"classes": c, "ms": 2.0 * c} for c in (10, 100, 1000)]
    assert tool.exponent(records, "ms") == "C^1.00"
