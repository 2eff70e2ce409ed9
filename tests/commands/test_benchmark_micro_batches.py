"""tools/benchmarks/benchmark_micro_batches.py measures and writes its report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import nn

from varcon_plugin.commands.benchmarks import micro_batches


def test_report_and_picture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def small() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 14 * 14, 4)
        )

    monkeypatch.setattr(
        micro_batches,
        "measured_apart",
        lambda _, arguments, __: micro_batches.measure(*arguments),
    )
    monkeypatch.setattr(micro_batches, "encoder", small)
    sizes = ["--batch", "64", "--sizes", "8", "4", "--pixels", "16"]
    micro_batches.main([*sizes, "--dtype", "bfloat16", "--out", str(tmp_path)])
    records = json.loads((tmp_path / "report.json").read_text())
    assert [record["size"] for record in records] == [None, 8, 4]
    assert all(record["s"] > 0 for record in records)
    report = (tmp_path / "report.md").read_text()
    assert "| plain |" in report
    assert "| 1.00 x |" in report
    assert (tmp_path / "micro_batches.png").stat().st_size > 1000
