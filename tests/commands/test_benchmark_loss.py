"""tools/benchmarks/benchmark_loss.py compares like with like, and writes its report."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from varcon_plugin.commands.benchmarks import loss


@pytest.fixture
def benchmark_loss(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The tool, which measures in this process and repeats nothing."""
    monkeypatch.setattr(loss, "SECONDS", 0)

    def here(case: str, method: str, device: str) -> dict[str, Any]:
        record = {"case": case, "method": method, "device": device}
        return {**record, **loss.measure(case, method, device)}

    monkeypatch.setattr(loss, "in_own_process", here)
    return loss


@pytest.mark.parametrize("given", [False, True])
def test_all_versions_of_the_objective_are_the_same(
    benchmark_loss: ModuleType, given: bool
) -> None:
    labels = torch.randperm(24) % 5
    centroids = torch.nn.functional.normalize(torch.randn(5, 8)) if given else None
    results = []
    for method in ("ours", "static", "readable", "transcription"):
        x = torch.randn(24, 8, generator=torch.Generator().manual_seed(1))
        loss = benchmark_loss.build(method, 5, centroids)(x.requires_grad_(), labels)
        loss.backward()
        results.append((loss.detach(), x.grad))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-4, atol=1e-6)


def test_report(
    benchmark_loss: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = ["32x4x8", "64x4x8", "64x8x8", "16x40x8:float64"]
    benchmark_loss.run(cases, ["ours", "static", "transcription"], tmp_path / "out")
    progress = capsys.readouterr().out
    assert "[11/11]" in progress  # the last case has no class means: two methods
    records = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(records) == 11
    assert all(record["ms"] > 0 and record["floor_ms"] > 0 for record in records)
    report = (tmp_path / "out" / "report.md").read_text()
    assert "| 64 | 8 | 8 | float32 |" in report
    assert report.count("| paper transcription | ^") == 1
    assert f"torch {torch.__version__}" in report


@pytest.mark.parametrize("case", ["64x4", "64x4x8:flaot32", "axbxc"])
def test_malformed_case(benchmark_loss: ModuleType, case: str) -> None:
    with pytest.raises(SystemExit, match=r'a case is "NxCxD"'):
        benchmark_loss.run([case], ["ours"], Path("nowhere"))
