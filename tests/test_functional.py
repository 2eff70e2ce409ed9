"""The specification against two independent witnesses, and its own properties."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from reference import varcon
from torch import Tensor

from varcon_plugin.functional import (
    VarConTerms,
    class_sums,
    normalize,
    target_distribution,
    varcon_terms,
)


def batch(n: int, c: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    options: Any = {"generator": generator, "dtype": torch.float64}
    return (
        normalize(torch.randn(n, d, **options)),
        torch.randint(c, (n,), generator=generator),
        normalize(torch.randn(c, d, **options)),
    )


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_golden_vectors(golden: dict[str, Any]) -> None:
    z = golden["features"].requires_grad_()
    classes, targets = golden["labels"].unique(return_inverse=True)
    sums, _ = class_sums(z.detach(), targets, len(classes))
    terms = varcon_terms(z, targets, normalize(sums), **golden["settings"])
    terms.loss.mean().backward()
    close(terms.loss.mean(), golden["loss"])
    close(terms.kl.mean(), golden["kl"])
    close(terms.nll.mean(), golden["nll"])
    close(terms.tau2, golden["tau2"])
    close(terms.confidence.mean(), golden["mean_confidence"])
    close(z.grad, golden["grad_features"])


@pytest.mark.parametrize(
    ("n", "c", "d", "temperature", "epsilon"),
    [
        (1, 1, 3, 0.1, 0.02),
        (5, 2, 3, 0.1, 0.02),
        (13, 7, 5, 0.3, 0.29),
        (12, 4, 2, 10.0, 5.0),
        (9, 3, 4, 0.05, 0.0),
    ],
)
def test_equals_loops_over_the_equations(
    n: int, c: int, d: int, temperature: float, epsilon: float
) -> None:
    z, labels, _ = batch(n, c, d)
    classes, targets = labels.unique(return_inverse=True)
    sums, _ = class_sums(z, targets, len(classes))
    terms = varcon_terms(
        z, targets, normalize(sums), temperature=temperature, epsilon=epsilon
    )
    expected = varcon(z.tolist(), labels.tolist(), temperature, epsilon)
    for name, actual in terms._asdict().items():
        close(actual, torch.tensor([r[name] for r in expected], dtype=torch.float64))


def loss_of(z: Tensor, t: Tensor, w: Tensor, own: Tensor | None = None) -> Tensor:
    return varcon_terms(z, t, w, temperature=0.3, epsilon=0.2, own=own).loss


def test_gradcheck_in_embeddings_centroids_and_own() -> None:
    z, t, w = batch(7, 4, 3)
    own = normalize(torch.randn(7, 3, dtype=torch.float64))
    inputs = [x.requires_grad_() for x in (z, w, own)]
    assert torch.autograd.gradcheck(lambda z, w, own: loss_of(z, t, w, own), inputs)
    assert torch.autograd.gradcheck(lambda z, w: loss_of(z, t, w), inputs[:2])
    assert torch.autograd.gradgradcheck(lambda z, w: loss_of(z, t, w), inputs[:2])


@pytest.mark.parametrize("name", ["kl", "nll", "confidence", "tau2"])
def test_gradcheck_of_every_term(name: str) -> None:
    z, t, w = batch(5, 3, 3)

    def term(z: Tensor) -> Tensor:
        return getattr(varcon_terms(z, t, w, temperature=0.3, epsilon=0.2), name)

    assert torch.autograd.gradcheck(term, z.requires_grad_())


def test_gradient_wrt_the_logits_is_2p_minus_q_minus_onehot_for_fixed_tau2() -> None:
    """With orthonormal centroids the embeddings are the logits, times temperature."""
    c, temperature = 5, 0.5
    w = torch.eye(c, dtype=torch.float64)
    t = torch.arange(c)
    z = normalize(torch.randn(c, c, dtype=torch.float64)).requires_grad_()
    terms = varcon_terms(z, t, w, temperature=temperature, epsilon=0.0)
    terms.loss.sum().backward()
    p = (z / temperature).softmax(dim=1)
    one_hot = torch.nn.functional.one_hot(t, c).double()
    q = (one_hot / temperature).softmax(dim=1)
    close(z.grad * temperature, 2 * p - q - one_hot)


def test_absent_rows_do_not_count_whatever_they_hold() -> None:
    z, t, w = batch(20, 4, 6)
    rows = torch.tensor([1, 3, 4, 7])
    table = torch.full((9, 6), torch.nan, dtype=torch.float64)
    table[rows] = w
    present = torch.zeros(9, dtype=torch.bool)
    present[rows] = True
    table = table.nan_to_num(1e3)  # finite rubbish, the table of a bank not yet full
    settings: Any = {"temperature": 0.1, "epsilon": 0.02}
    sparse = varcon_terms(z, rows[t], table, present=present, **settings)
    for actual, expected in zip(sparse, varcon_terms(z, t, w, **settings), strict=True):
        close(actual, expected)


def test_own_reference_takes_the_place_of_the_own_centroid_only() -> None:
    z, t, w = batch(6, 3, 4)
    own = normalize(torch.randn(6, 4, dtype=torch.float64))
    settings: Any = {"temperature": 0.2, "epsilon": 0.1}
    for i in range(6):
        swapped = w.clone()
        swapped[t[i]] = own[i]
        alone = varcon_terms(z[i : i + 1], t[i : i + 1], swapped, **settings)
        together = varcon_terms(z, t, w, own=own, **settings)
        close(together.loss[i], alone.loss[0])


def test_single_class_is_zero_with_zero_gradient() -> None:
    z, _, w = batch(4, 1, 3)
    t = torch.zeros(4, dtype=torch.int64)
    z.requires_grad_()
    terms = varcon_terms(z, t, w, temperature=0.1, epsilon=0.02)
    assert terms.loss.tolist() == terms.kl.tolist() == terms.nll.tolist() == [0] * 4
    assert terms.confidence.tolist() == [1] * 4
    terms.loss.sum().backward()
    assert z.grad.count_nonzero() == 0


def test_ranges_of_the_terms() -> None:
    z, t, w = batch(200, 10, 4)
    terms = varcon_terms(z, t, w, temperature=0.1, epsilon=0.03)
    assert terms.kl.min() >= 0
    assert terms.nll.min() >= 0
    assert 0 <= terms.confidence.min() <= terms.confidence.max() <= 1
    assert 0.07 <= terms.tau2.min() <= terms.tau2.max() <= 0.13
    assert terms.tau2[terms.confidence.argsort()].diff().min() >= 0  # Eq. 13


@pytest.mark.parametrize("tau2", [1e-18, 1e-3, 0.0112, 0.08, 0.12, 1.0, 1e3])
@pytest.mark.parametrize("others", [0, 1, 999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_target_is_the_softmax_of_one_hot(
    tau2: float, others: int, dtype: torch.dtype
) -> None:
    one_hot = torch.zeros(1 + others, dtype=torch.float64)
    one_hot[0] = 1
    expected = (one_hot / tau2).log_softmax(0)
    _, q, rest, log_q, log_q_other = target_distribution(
        torch.zeros(1, dtype=dtype), torch.tensor(others, dtype=dtype), tau2, 0.0
    )
    tolerance = 100 * torch.finfo(dtype).eps
    if others:
        close(q[0].double(), expected[0].exp(), tolerance)
        close(rest[0].double(), expected[1:].exp().sum(), tolerance)
        close(log_q[0].double(), expected[0], tolerance)
        close(log_q_other[0].double(), expected[1], tolerance)
    assert all(x.isfinite() for x in (q, rest, log_q, log_q_other))


def test_normalize_and_its_derivatives() -> None:
    x = torch.randn(5, 4, dtype=torch.float64)
    close(normalize(x), torch.nn.functional.normalize(x))
    x.requires_grad_()
    assert torch.autograd.gradcheck(normalize, x)
    assert torch.autograd.gradgradcheck(normalize, x)


def test_normalize_leaves_zero_rows_at_zero_with_zero_gradient() -> None:
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    unit = normalize(x)
    assert unit[0].tolist() == [0, 0]
    (grad,) = torch.autograd.grad(unit.sum(), x, create_graph=True)
    assert grad[0].tolist() == [0, 0]
    (second,) = torch.autograd.grad(grad.sum(), x)
    assert second[0].tolist() == [0, 0]
    assert second.isfinite().all()


def test_class_sums_of_parts_add_up() -> None:
    z, t, _ = batch(20, 5, 3)
    whole = class_sums(z, t, 6)
    parts = class_sums(z[:7], t[:7], 6), class_sums(z[7:], t[7:], 6)
    close(parts[0][0] + parts[1][0], whole[0])
    assert whole[1].tolist() == t.bincount(minlength=6).tolist()
    assert (parts[0][1] + parts[1][1]).tolist() == whole[1].tolist()


def test_uniform_posterior_starts_near_two_log_c() -> None:
    """The value a run starts from where embeddings know nothing of the classes."""
    z, t, w = torch.zeros(8, 3).double(), torch.arange(8), batch(8, 8, 3)[2]
    terms: VarConTerms = varcon_terms(z, t, w, temperature=0.1, epsilon=0.02)
    close(terms.nll, torch.full_like(terms.nll, math.log(8)))
    close(terms.kl, terms.nll, 1e-3)
