"""The fast path equals the specification, and does no more work than it must."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from varcon_plugin import fused
from varcon_plugin.functional import normalize, varcon_terms
from varcon_plugin.fused import fused_varcon_terms

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}
SHAPES = [(1, 1, 4), (7, 1, 3), (1, 5, 2), (64, 2, 8), (131, 37, 17), (40, 251, 33)]
TEMPERATURES = [(0.1, 0.02), (0.3, 0.0), (0.02, 0.015), (1e-3, 5e-4), (10.0, 9.0)]


def batch(
    n: int, c: int, d: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n + c)
    z, w = (torch.randn(r, d, generator=generator).to(dtype) for r in (n, c))
    return normalize(z), torch.randint(c, (n,), generator=generator), normalize(w)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles that divide neither the classes nor the samples of the tests."""
    monkeypatch.setattr(fused, "TILE_COLUMNS", 11)
    monkeypatch.setattr(fused, "MIN_TILE_ROWS", 9)
    monkeypatch.setattr(fused, "TILE_BYTES_PER_THREAD", 0)


@pytest.fixture
def convolved_tiles(small_tiles: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, multiplied by oneDNN whatever their size, in float32."""
    monkeypatch.setattr(fused, "MIN_CONVOLVED_ROWS", 0)
    monkeypatch.setattr(fused, "MIN_CONVOLVED_PRODUCTS", 0)


def assert_equals_specification(
    n: int, c: int, d: int, dtype: torch.dtype, masked: bool, replaced: bool
) -> None:
    z, t, w = batch(n, c, d, dtype)
    present = own = None
    if masked:
        present = torch.arange(c) % 3 != 1
        present[t] = True
        w[~present] = 7.0  # rubbish
    if replaced:
        own = normalize(torch.randn_like(z))
    upstream = torch.randn_like(z[:, 0])
    for temperature, epsilon in TEMPERATURES:
        results = []
        for function, precision in (
            (varcon_terms, torch.float64),
            (fused_varcon_terms, dtype),
        ):
            x = z.to(precision, copy=True).requires_grad_()
            terms = function(
                x,
                t,
                w.to(precision),
                temperature=temperature,
                epsilon=epsilon,
                present=present,
                own=None if own is None else own.to(precision),
            )
            terms.loss.backward(upstream.to(precision))
            results.append([value.to(dtype) for value in (*terms, x.grad)])
        for expected, actual in zip(*results, strict=True):
            # Cancellation in sums of terms as large as the largest entry.
            scale = max(1.0, expected.abs().max().item())
            if expected.ndim == 2:
                scale = max(scale, 1 / temperature**2)
            tolerance = TOLERANCE[dtype]
            torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("replaced", [False, True], ids=["", "own"])
@pytest.mark.parametrize("masked", [False, True], ids=["", "present"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestEqualsSpecification:
    def test_in_one_tile(
        self, shape: Any, dtype: torch.dtype, masked: bool, replaced: bool
    ) -> None:
        assert_equals_specification(*shape, dtype, masked, replaced)

    @pytest.mark.usefixtures("small_tiles")
    def test_in_tiles(
        self, shape: Any, dtype: torch.dtype, masked: bool, replaced: bool
    ) -> None:
        assert_equals_specification(*shape, dtype, masked, replaced)

    @pytest.mark.usefixtures("convolved_tiles")
    def test_in_convolved_tiles(
        self, shape: Any, dtype: torch.dtype, masked: bool, replaced: bool
    ) -> None:
        assert_equals_specification(*shape, dtype, masked, replaced)


@pytest.fixture
def convolutions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the products that oneDNN is given."""
    shapes: list[tuple[int, ...]] = []
    convolve = fused._convolve

    def counted(rows: Tensor, kernels: Tensor) -> Tensor:
        shapes.append((*rows.shape, len(kernels)))
        return convolve(rows, kernels)

    monkeypatch.setattr(fused, "_convolve", counted)
    return shapes


def test_large_float32_products_are_convolutions_of_full_precision(
    convolutions: list[tuple[int, ...]],
) -> None:
    z, t, w = batch(301, 200, 128)
    results = []
    for dtype in (torch.float64, torch.float32):
        x, c = z.to(dtype, copy=True).requires_grad_(), w.to(dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            terms = fused_varcon_terms(x, t, c, temperature=0.1, epsilon=0.02)
        (grad,) = torch.autograd.grad(terms.loss.sum(), x)
        results.append((terms.loss.double(), grad.double()))
    assert convolutions == [(301, 128, 200), (301, 200, 128)]
    for exact, single in zip(*results, strict=True):
        torch.testing.assert_close(single, exact, rtol=2e-6, atol=2e-5)


def test_small_products_are_not_convolutions(
    convolutions: list[tuple[int, ...]],
) -> None:
    z, t, w = batch(64, 200, 128, torch.float32)
    fused_varcon_terms(z, t, w, temperature=0.1, epsilon=0.02)
    z, t, w = batch(300, 20, 128, torch.float32)
    fused_varcon_terms(z, t, w, temperature=0.1, epsilon=0.02)
    assert convolutions == []


def test_without_onednn_the_matrix_product_is_used(
    convolutions: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    z, t, w = batch(300, 200, 128, torch.float32)
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        expected = fused_varcon_terms(z, t, w, temperature=0.1, epsilon=0.02).loss
    assert convolutions == []
    actual = fused_varcon_terms(z, t, w, temperature=0.1, epsilon=0.02).loss
    torch.testing.assert_close(actual, expected)
    assert len(convolutions) == 1


@pytest.mark.parametrize("replaced", [False, True], ids=["", "own"])
def test_gradcheck_of_first_and_second_derivative(replaced: bool) -> None:
    z, t, w = batch(6, 4, 3)
    own = normalize(torch.randn_like(z)) if replaced else None

    def loss(z: Tensor) -> Tensor:
        settings: Any = {"temperature": 0.3, "epsilon": 0.2, "own": own}
        return fused_varcon_terms(z, t, w, **settings).loss

    z.requires_grad_()
    assert torch.autograd.gradcheck(loss, z)
    assert torch.autograd.gradgradcheck(loss, z)


@pytest.mark.parametrize("argument", ["centroids", "own"])
def test_gradient_into_the_references_comes_from_the_specification(
    argument: str,
) -> None:
    z, t, w = batch(9, 4, 5)
    own = normalize(torch.randn_like(z))
    grads = []
    for function in (varcon_terms, fused_varcon_terms):
        inputs = {"embeddings": z, "centroids": w, "own": own}
        inputs = {name: x.clone().requires_grad_() for name, x in inputs.items()}
        if argument == "centroids":
            inputs.pop("own")
        else:
            inputs["centroids"] = w
        loss = function(targets=t, temperature=0.2, epsilon=0.1, **inputs).loss
        grads.append(torch.autograd.grad(loss.sum(), inputs[argument])[0])
    torch.testing.assert_close(*grads, rtol=0, atol=1e-12)
    assert grads[1].abs().max() > 0.1


def test_only_the_loss_is_differentiable_and_backward_can_be_repeated() -> None:
    z, t, w = batch(9, 4, 5)
    z.requires_grad_()
    terms = fused_varcon_terms(z, t, w, temperature=0.1, epsilon=0.02)
    assert [x.requires_grad for x in terms] == [True, False, False, False, False]
    first, second = (
        torch.autograd.grad(terms.loss.sum(), z, retain_graph=True)[0] for _ in range(2)
    )
    assert first.equal(second)


def test_strides_do_not_matter() -> None:
    z, t, w = batch(20, 6, 5)
    settings: Any = {"temperature": 0.1, "epsilon": 0.02}
    grads = []
    for x, c in ((z, w), (z.T.contiguous().T, w.T.contiguous().T)):
        x = x.detach().requires_grad_()
        fused_varcon_terms(x, t, c, **settings).loss.sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads)


class _Products(TorchDispatchMode):
    """Multiplications in the matrix products that were made."""

    count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_):
            left, right = args[-2:]
            self.count += left.shape[0] * left.shape[1] * right.shape[1]
        return function(*args, **(kwargs or {}))


def products(n: int, c: int, d: int, grad: bool) -> int:
    z, t, w = batch(n, c, d)
    with _Products() as mode, torch.set_grad_enabled(grad):
        loss = fused_varcon_terms(
            z.requires_grad_(), t, w, temperature=0.1, epsilon=0.02
        ).loss
        if grad:
            loss.sum().backward()
    return mode.count


def test_one_product_for_the_value_and_one_for_the_gradient() -> None:
    assert products(64, 50, 16, grad=False) == 64 * 50 * 16
    assert products(64, 50, 16, grad=True) == 2 * 64 * 50 * 16


class _Largest(TorchDispatchMode):
    """Number of elements of the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.numel())
        return result


@pytest.mark.parametrize("temperature", [0.1, 1e-3])
@pytest.mark.usefixtures("small_tiles")
def test_nothing_of_the_size_of_samples_times_classes_is_made(
    temperature: float,
) -> None:
    n, c, d = 600, 500, 8
    z, t, w = batch(n, c, d)
    with _Largest() as largest:
        z.requires_grad_()
        terms = fused_varcon_terms(z, t, w, temperature=temperature, epsilon=0.0)
        terms.loss.sum().backward()
    assert largest.elements <= max(n, c) * d


def test_deterministic() -> None:
    z, t, w = batch(300, 40, 16, torch.float32)
    z.requires_grad_()
    runs = []
    for _ in range(3):
        terms = fused_varcon_terms(z, t, w, temperature=0.1, epsilon=0.02)
        runs.append([*terms, *torch.autograd.grad(terms.loss.sum(), z)])
    for other in runs[1:]:
        assert all(a.equal(b) for a, b in zip(runs[0], other, strict=True))


def test_confident_samples_keep_their_digits_in_float32() -> None:
    """-log p near p = 1 by log1p, where s_r - lse would round to a few digits."""
    w = normalize(torch.randn(20, 64, dtype=torch.float64))
    t = torch.arange(20)
    z = normalize(w + 0.01)
    settings: Any = {"temperature": 0.05, "epsilon": 0.02}
    exact = varcon_terms(z, t, w, **settings)
    single = fused_varcon_terms(z.float(), t, w.float(), **settings)
    assert exact.nll.min() < 1e-6
    torch.testing.assert_close(single.nll.double(), exact.nll, rtol=1e-4, atol=0)


@pytest.mark.parametrize("create_graph", [False, True])
def test_mean_of_the_batch_moves_towards_the_own_centroid(create_graph: bool) -> None:
    z, t, w = batch(50, 5, 4)
    z.requires_grad_()
    loss = fused_varcon_terms(z, t, w, temperature=0.2, epsilon=0.05).loss
    (grad,) = torch.autograd.grad(loss.sum(), z, create_graph=create_graph)
    step = normalize(z.detach() - 1e-3 * grad.detach())
    after = fused_varcon_terms(step, t, w, temperature=0.2, epsilon=0.05).loss
    assert after.sum() < loss.sum()
