"""Time and memory of `VarConLoss` beside other losses and beside two matrix products.

    python tools/benchmarks/benchmark_loss.py

writes work_dirs/benchmark_loss/report.md and report.json. Each figure is forward and
backward, from raw embeddings to their gradient, in a process of its own. The floor are
the two matrix products z W^T and p W in float32 or better: whole or in row chunks,
whichever is faster, interleaved with the loss in the same process. Memory is that of
the first step.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from varcon_plugin import VarConLoss, fused_varcon_terms, varcon_terms
from varcon_plugin.commands.benchmarks.report import METHODS, Case, figures, report
from varcon_plugin.functional import class_sums, normalize

CASES = [
    "2048x1000x128",
    "4096x1000x128",
    "8192x1000x128",
    "8192x100x128",
    "8192x8000x128",
    "8192x1000x512",
    "8192x1000x128:bfloat16",
    "8192x1000x128:float64",
    "2048x100000x128",
]
SETTINGS: dict[str, Any] = {"temperature": 0.1, "epsilon": 0.02}
SECONDS = 1.0  # of repetitions for a figure
MIN_REPEATS, MAX_REPEATS = 3, 50

Step = Callable[[Tensor, Tensor], Tensor]


def transcription(embeddings: Tensor, targets: Tensor, centroids: Tensor) -> Tensor:
    """The objective as the paper writes it: one-hot, p and q as (N, C) matrices."""
    temperature, epsilon = SETTINGS["temperature"], SETTINGS["epsilon"]
    p = (embeddings @ centroids.T / temperature).softmax(dim=1)  # Eq. 8
    one_hot = F.one_hot(targets, len(centroids)).to(p)  # Eq. 10
    confidence = (p * one_hot).sum(dim=1, keepdim=True)
    tau2 = (temperature - epsilon) + 2 * epsilon * confidence  # Eq. 13
    q_exp = 1 + (torch.exp(1 / tau2) - 1) * one_hot  # Eq. 11
    q = q_exp / q_exp.sum(dim=1, keepdim=True)  # Eq. 12
    kl = F.kl_div(p.log(), q, reduction="none").sum(dim=1)
    loss: Tensor = (kl - confidence[:, 0].log()).mean()  # Eq. 7
    return loss


def readable(embeddings: Tensor, targets: Tensor, centroids: Tensor) -> Tensor:
    """The specification under autograd."""
    return varcon_terms(embeddings, targets, centroids, **SETTINGS).loss.mean()


def fused(embeddings: Tensor, targets: Tensor, centroids: Tensor) -> Tensor:
    """What `VarConLoss` calls."""
    return fused_varcon_terms(embeddings, targets, centroids, **SETTINGS).loss.mean()


def with_centroids(
    function: Callable[[Tensor, Tensor, Tensor], Tensor], given: Tensor | None
) -> Step:
    """``function`` with ``given`` centroids, or with the class means of the batch."""

    def step(embeddings: Tensor, labels: Tensor) -> Tensor:
        dtype = torch.promote_types(embeddings.dtype, torch.float32)
        unit = normalize(embeddings.to(dtype))
        if given is not None:
            return function(unit, labels, given)
        classes, targets = torch.unique(labels, return_inverse=True)
        sums, _ = class_sums(unit.detach(), targets, len(classes))
        return function(unit, targets, normalize(sums))

    return step


def build(method: str, num_classes: int, given: Tensor | None) -> Step:
    """The loss of raw embeddings and labels. Imports what it needs, and no more."""
    if method == "supcon":
        from pytorch_metric_learning.losses import SupConLoss

        criterion: Step = SupConLoss(temperature=0.1)
        return criterion
    if method == "ntxent":
        from lightly.loss import NTXentLoss

        views = NTXentLoss(temperature=0.1)
        return lambda embeddings, _: views(*embeddings.chunk(2))
    if method in ("readable", "transcription") or given is not None:
        functions = {"readable": readable, "transcription": transcription}
        return with_centroids(functions.get(method, fused), given)
    options: dict[str, dict[str, Any]] = {
        "ours": {},
        "static": {"num_classes": num_classes},
        "leave_one_out": {"leave_one_out": True},
    }
    return VarConLoss(**SETTINGS, **options[method])


def applies(method: str, case: Case) -> bool:
    """With C > N the centroids are given: nothing for losses that make their own."""
    return case.c <= case.n or method in ("ours", "readable", "transcription")


def floors(n: int, c: int, d: int, like: Tensor) -> list[Callable[[], None]]:
    """The two products, whole and in row chunks, without any allocation."""
    z, w, out = (torch.randn_like(like.new_empty(rows, d)) for rows in (n, c, n))

    def chunked(rows: int) -> Callable[[], None]:
        logits = like.new_empty(rows, c)

        def products() -> None:
            for i in range(0, n, rows):
                part = logits[: len(z[i : i + rows])]
                torch.mm(z[i : i + rows], w.T, out=part)
                torch.mm(part, w, out=out[i : i + rows])

        return products

    return [chunked(rows) for rows in sorted({n, min(n, 1024), min(n, 512)})]


def memory(device: str) -> tuple[int, int]:
    """Bytes in use now, and their peak since `reset_peak`."""
    if device == "cuda":
        return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    status = dict(
        re.findall(r"(VmRSS|VmHWM):\s*(\d+) kB", Path("/proc/self/status").read_text())
    )
    return 1024 * int(status["VmRSS"]), 1024 * int(status["VmHWM"])


def reset_peak(device: str) -> None:
    """Start the peak afresh."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def seconds(function: Callable[[], Any], device: str) -> float:
    """Time of one call, all of its kernels included."""
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def median_ms(
    functions: Sequence[Callable[[], Any]], device: str, budget: float
) -> list[float]:
    """Median time of each, called in turn for about ``budget`` seconds."""
    runs: list[list[float]] = [[] for _ in functions]
    start = time.perf_counter()
    while len(runs[0]) < MIN_REPEATS or (
        time.perf_counter() - start < budget and len(runs[0]) < MAX_REPEATS
    ):
        for function, times in zip(functions, runs, strict=True):
            times.append(seconds(function, device))
    return [1e3 * statistics.median(times) for times in runs]


def measure(text: str, method: str, device: str) -> dict[str, float]:
    """Time, floor and extra memory of one method in one case."""
    n, c, d, dtype = Case.parse(text)
    # Freeing this makes glibc keep what is freed later, as the activations of a network
    # do; else the pages of every temporary are faulted in anew at every step.
    torch.empty(31 * 2**20, dtype=torch.uint8)
    torch.manual_seed(0)
    x = torch.randn(n, d, device=device).to(getattr(torch, dtype)).requires_grad_()
    like = torch.empty(
        0, device=device, dtype=torch.promote_types(x.dtype, torch.float)
    )
    given = normalize(torch.randn_like(like.new_empty(c, d))) if c > n else None
    labels = torch.randperm(n) % c if given is None else torch.randint(c, (n,))
    labels = labels.to(device)
    criterion = build(method, c, given)

    def step() -> None:
        x.grad = None
        torch.autograd.backward(criterion(x, labels))

    few = x.detach()[:8].requires_grad_()
    targets = torch.arange(8, device=device) % 4
    torch.autograd.backward(criterion(few, targets))  # load what is lazy
    reset_peak(device)
    before, _ = memory(device)
    step()
    extra = memory(device)[1] - before

    products = floors(n, c, d, like)
    ms, *floor_ms = median_ms([step, *products], device, SECONDS)
    return {"ms": ms, "floor_ms": min(floor_ms), "extra_mb": extra / 2**20}


def in_own_process(case: str, method: str, device: str) -> dict[str, Any]:
    """`measure` in a fresh interpreter; with an ``error`` in place of figures."""
    record = {"case": case, "method": method, "device": device}
    command = [sys.executable, "-m", __name__, "--measure", case, method, device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
        return {**record, "error": lines[-1]}
    return {**record, **json.loads(done.stdout.splitlines()[-1])}


def run(cases: list[str], methods: list[str], out: Path) -> None:
    """Measure everything, saying so as it goes, and write the report."""
    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    todo = [
        (case, method, device)
        for device in devices
        for case in cases
        for method in methods
        if applies(method, Case.parse(case))
    ]
    out.mkdir(parents=True, exist_ok=True)
    records = []
    for i, arguments in enumerate(todo, 1):
        record = in_own_process(*arguments)
        records.append(record)
        says = record.get("error") or f"{record['ms']:,.1f} ms, {figures(record)}"
        print(f"[{i}/{len(todo)}] {' '.join(arguments)}: {says}", flush=True)
        (out / "report.json").write_text(json.dumps(records, indent=1) + "\n")
        (out / "report.md").write_text(report(records))
    print(f"\n{report(records)}\nWritten: {out / 'report.md'}, {out / 'report.json'}")


def main() -> None:
    """Parse the arguments; measure one figure, or all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "cases", nargs="*", metavar="NxCxD[:dtype]", help=f"default: {' '.join(CASES)}"
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--out", type=Path, default=Path("work_dirs/benchmark_loss"))
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        return
    for case in arguments.cases:
        Case.parse(case)
    run(arguments.cases or CASES, arguments.methods, arguments.out)


if __name__ == "__main__":
    main()
