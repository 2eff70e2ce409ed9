"""make test-gpu says when there is nothing to test on, and reports what fails."""

import pytest
import torch

from varcon_plugin.commands import gpu_report


def test_without_a_gpu_it_says_so_and_writes_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        "sys.argv", ["gpu_report", "--out", str(tmp_path / "report.md")]
    )
    with pytest.raises(SystemExit, match="no GPU of NVIDIA here: nothing was tested"):
        gpu_report.main()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [0, 1])
def test_the_report_holds_the_tests_and_a_failure_is_one(code, monkeypatch, tmp_path):
    class Done:
        returncode, stdout = code, "FAILED one test"

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_report.subprocess, "run", lambda *_, **__: Done)
    monkeypatch.setattr(gpu_report, "machine", lambda: "# a GPU")
    monkeypatch.setattr(gpu_report, "timings", lambda: ["| a | table |"])
    out = tmp_path / "deep" / "report.md"
    monkeypatch.setattr("sys.argv", ["gpu_report", "--out", str(out)])
    if code:
        with pytest.raises(SystemExit, match="tests failed on this GPU"):
            gpu_report.main()
    else:
        gpu_report.main()
    text = out.read_text()
    for part in ("# a GPU", "FAILED one test", "| a | table |"):
        assert part in text
