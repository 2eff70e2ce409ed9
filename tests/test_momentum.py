"""The bank of class references, with the loss on top of it."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from varcon_plugin import MomentumCentroids, VarConLoss, varcon_terms
from varcon_plugin.functional import normalize

Run = Callable[..., list[Any]]
C, D, MOMENTUM = 9, 5, 0.8
SETTINGS = {"temperature": 0.1, "epsilon": 0.02}


def batch(samples: int = 12, seed: int = 0, classes: int = C) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, D, dtype=torch.float64, generator=generator)
    return x, torch.randint(classes, (samples,), generator=generator)


def bank(**options: Any) -> MomentumCentroids:
    return MomentumCentroids(C, D, MOMENTUM, **options).double()


def filled(**options: Any) -> VarConLoss:
    """A loss whose bank knows every class."""
    criterion = VarConLoss(centroids=bank(**options))
    for seed in range(options.get("accumulation_steps", 1)):
        x = torch.randn(2 * C, D, generator=torch.Generator().manual_seed(seed))
        criterion(x.double(), torch.arange(C).repeat(2))
    return criterion


def value_and_gradient(criterion: VarConLoss, x: Tensor, y: Tensor) -> tuple:
    x = x.clone().requires_grad_()
    loss = criterion(x, y)
    return loss.detach(), torch.autograd.grad(loss, x)[0]


def test_a_batch_is_compared_with_the_bank_before_it():
    criterion = filled()
    before = criterion.centroids.means.clone()
    x, y = batch()
    loss = criterion(x, y)
    expected = varcon_terms(normalize(x), y, normalize(before), **SETTINGS).loss.mean()
    torch.testing.assert_close(loss, expected)
    assert not torch.equal(criterion.centroids.means, before)


def test_update_is_the_documented_formula():
    criterion = filled()
    old = criterion.centroids.means.clone()
    old_counts = criterion.centroids.counts.clone()
    x, y = batch()
    criterion(x, y)
    for c in range(C):
        members = normalize(x)[y == c]
        keep = MOMENTUM ** len(members)
        expected = old[c]
        if len(members):
            expected = keep * old[c] + (1 - keep) * members.mean(dim=0)
        torch.testing.assert_close(criterion.centroids.means[c], expected)
    added = criterion.centroids.counts - old_counts
    assert torch.equal(added, torch.bincount(y, minlength=C))


def test_a_new_class_enters_with_its_batch_mean_and_the_others_stay_out():
    criterion = VarConLoss(centroids=bank())
    x, _ = batch(4)
    y = torch.tensor([2, 2, 7, 7])
    loss = criterion(x, y)
    published = VarConLoss()(x, y)  # the two classes, with the means of the batch
    torch.testing.assert_close(loss, published)
    assert criterion.centroids.seen.nonzero().flatten().tolist() == [2, 7]
    torch.testing.assert_close(
        criterion.centroids.means[2], normalize(x)[:2].mean(dim=0)
    )


def test_small_batches_leave_as_much_of_the_old_reference_as_one_large_one():
    """Members at one point: the path from the old reference to it is the same."""
    large, small = filled(), filled()
    x = torch.randn(1, D).double().expand(6, D)
    y = torch.full((6,), 3)
    large(x, y)
    for part in range(3):
        small(x[2 * part : 2 * part + 2], y[:2])
    torch.testing.assert_close(small.centroids.means, large.centroids.means)
    assert torch.equal(small.centroids.counts, large.centroids.counts)


def test_evaluation_moves_nothing_and_leaves_unseen_classes_out():
    criterion = VarConLoss(centroids=bank())
    criterion(*batch(classes=4))
    state = copy.deepcopy(criterion.state_dict())
    criterion.eval()
    x, y = batch(seed=1, classes=6)
    known = criterion.centroids.seen[y]
    assert not known.all()
    terms = criterion.forward_components(x, y)
    torch.testing.assert_close(terms.loss, criterion(x[known], y[known]))
    assert (terms.nll[~known] == 0).all()
    assert (terms.nll[known] > 0).all()
    for name, value in criterion.state_dict().items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize("options", [{}, {"num_negatives": 4}])
def test_resume_is_equal_to_the_last_bit(options):
    running = filled(**options)
    file = io.BytesIO()
    torch.save(running.state_dict(), file)
    file.seek(0)
    resumed = VarConLoss(centroids=bank(**options))
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for seed in range(3):
        x, y = batch(seed=seed)
        for one, other in zip(
            value_and_gradient(running, x, y),
            value_and_gradient(resumed, x, y),
            strict=True,
        ):
            assert torch.equal(one, other)
    for name, value in running.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_bank_stays_in_float32(dtype):
    criterion = VarConLoss(centroids=MomentumCentroids(C, D)).to(dtype)
    x, y = batch()
    loss = criterion(x.to(dtype), y)
    assert loss.dtype == torch.float32
    assert criterion.centroids.means.dtype == torch.float32
    assert torch.isfinite(loss)


def test_gradient_accumulation_equals_a_larger_batch():
    steps = 3
    whole, parts = filled(), filled(accumulation_steps=steps)
    for name in ("means", "counts", "seen"):
        getattr(parts.centroids, name).copy_(getattr(whole.centroids, name))
    for round_ in range(2):
        x, y = batch(12, seed=round_)
        loss, gradient = value_and_gradient(whole, x, y)
        pieces = [
            value_and_gradient(parts, x[i::steps], y[i::steps]) for i in range(steps)
        ]
        mean = sum(piece[0] for piece in pieces) / steps
        torch.testing.assert_close(mean, loss)
        joined = torch.empty_like(gradient)
        for i, piece in enumerate(pieces):
            joined[i::steps] = piece[1] / steps
        torch.testing.assert_close(joined, gradient)
        for name in ("means", "counts"):
            torch.testing.assert_close(
                getattr(parts.centroids, name), getattr(whole.centroids, name)
            )


def denominator(criterion: VarConLoss, x: Tensor, y: Tensor) -> Tensor:
    """Sum of exp(z . w_j / temperature) over the classes scored, each sample's."""
    criterion.temperature, criterion.epsilon = 1.0, 0.0
    reference = normalize(criterion.centroids.means)[y]
    true = (normalize(x) * reference).sum(dim=1)
    return (true + criterion.forward_components(x, y).nll).exp()


def test_sampled_negatives_estimate_the_denominator_without_bias():
    classes, draws = 40, 4000
    criterion = VarConLoss(centroids=MomentumCentroids(classes, D, num_negatives=5))
    criterion.double()
    x = torch.randn(classes, D, dtype=torch.float64)
    criterion(x, torch.arange(classes))
    criterion.centroids.seen[30:] = False  # never met: not to be scored
    x, y = batch(3, classes=3)
    criterion.eval()
    estimates = []
    for step in range(draws):
        criterion.centroids.set_extra_state(torch.tensor(step))
        estimates.append(denominator(criterion, x, y))
    estimate = torch.stack(estimates)
    criterion.centroids.num_negatives = None
    exact = denominator(criterion, x, y)
    error = estimate.std(dim=0) / draws**0.5
    assert (error < 0.01 * exact).all()
    assert ((estimate.mean(dim=0) - exact).abs() < 4 * error).all()


@pytest.mark.parametrize("classes", [100, 100_000])
def test_sampled_negatives_score_the_same_number_for_any_number_of_classes(classes):
    source = MomentumCentroids(classes, D, num_negatives=50)
    references = source(normalize(torch.randn(8, D)), torch.arange(8), None, [])
    assert references.centroids.shape == (8 + 50, D)


class Sizes(TorchDispatchMode):
    """Notes the sizes of what operations make, other than the buffers given."""

    def __init__(self, buffers: list[Tensor]) -> None:
        super().__init__()
        self.known = {buffer.data_ptr() for buffer in buffers}
        self.made: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.data_ptr() not in self.known:
            self.made.append(out.numel())
        return out


@pytest.mark.parametrize("negatives", [None, 50])
def test_only_a_step_over_all_classes_makes_anything_of_their_number(negatives):
    classes = 10_000
    criterion = VarConLoss(
        centroids=MomentumCentroids(classes, D, num_negatives=negatives)
    )
    x, y = torch.randn(8, D), torch.randint(classes, (8,))
    with Sizes(list(criterion.buffers())) as sizes:
        criterion(x, y)
    assert (max(sizes.made) >= classes) == (negatives is None)


def test_a_class_of_the_batch_is_no_negative_of_it():
    """All draws from two classes of the batch: none counts."""
    source = MomentumCentroids(3, D, num_negatives=2)
    source(normalize(torch.randn(3, D)), torch.arange(3), None, [])
    source.eval()
    for step in range(20):
        source.set_extra_state(torch.tensor(step))
        found = source(normalize(torch.randn(2, D)), torch.tensor([2, 0]), None, [])
        drawn = source._draw(2)
        expected = torch.where(drawn == 1, 3 / 2, 0)
        torch.testing.assert_close(found.present[2:], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes must be >= 1, got 0"),
        ({"dim": 0}, "dim must be >= 1, got 0"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"momentum": float("nan")}, r"momentum must be in \[0, 1\), got nan"),
        ({"num_negatives": 0}, "num_negatives must be >= 1, got 0"),
        ({"accumulation_steps": 0}, "accumulation_steps must be >= 1, got 0"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        MomentumCentroids(**{"num_classes": C, "dim": D, **options})


@pytest.mark.parametrize(
    "options",
    [{"num_classes": C}, {"leave_one_out": True}, {"detach_centroids": False}],
)
def test_options_of_the_batch_means_do_not_combine_with_a_bank(options):
    with pytest.raises(ValueError, match="not for centroids=MomentumCentroids"):
        VarConLoss(centroids=bank(), **options)


def test_bad_batches():
    criterion = VarConLoss(centroids=bank())
    x, y = batch()
    with pytest.raises(ValueError, match=r"labels must be in \[0, num_classes\)"):
        criterion(x, y + C)
    with pytest.raises(ValueError, match="dimension of the centroids, 5, got 4"):
        criterion(x[:, :4], y)
    assert not criterion.centroids.seen.any()


SIZES = (5, 11)


def on_a_rank(rank: int, options: dict[str, Any]) -> dict[str, Any]:
    criterion = VarConLoss(centroids=bank(**options))
    mine = slice(0, SIZES[0]) if rank == 0 else slice(SIZES[0], None)
    for seed in range(5):
        x, y = batch(sum(SIZES), seed=seed)
        loss, gradient = value_and_gradient(criterion, x[mine], y[mine])
    return {"loss": loss, "gradient": gradient / 2, **criterion.state_dict()}


@pytest.mark.parametrize(
    "options", [{}, {"num_negatives": 4}, {"accumulation_steps": 2}]
)
def test_ranks_agree_with_a_single_process(options, run_ranks: Run):
    first, second = run_ranks(on_a_rank, 2, options)
    criterion = VarConLoss(centroids=bank(**options))
    for seed in range(5):
        loss, gradient = value_and_gradient(criterion, *batch(sum(SIZES), seed=seed))
    joined = torch.cat((first.pop("gradient"), second.pop("gradient")))
    torch.testing.assert_close(joined, gradient, rtol=0, atol=1e-12)
    mean = (first.pop("loss") + second.pop("loss")) / 2
    torch.testing.assert_close(mean, loss, rtol=0, atol=1e-12)
    for name, value in criterion.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=0, atol=1e-12)


def long_run(rank: int) -> Tensor:
    torch.manual_seed(rank)
    criterion = VarConLoss(centroids=MomentumCentroids(C, D, MOMENTUM))
    for _ in range(2000):
        criterion(torch.randn(4 + rank, D), torch.randint(C, (4 + rank,)))
    return criterion.centroids.means


def test_banks_are_equal_to_the_last_bit_after_thousands_of_steps(run_ranks: Run):
    first, second = run_ranks(long_run, 2)
    assert torch.equal(first, second)
