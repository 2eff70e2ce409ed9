"""The bank of class references, with the loss on top of it."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.registry import lookup_backend
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from varcon_plugin import MomentumCentroids, VarConLoss, varcon_terms
from varcon_plugin.functional import normalize
from varcon_plugin.momentum import follow_scaler

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
    parts.load_state_dict(whole.state_dict())
    parts.centroids.set_extra_state(torch.tensor(0))
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
def test_a_step_makes_no_second_bank(negatives):
    """Over all classes one bool a class; over sampled ones nothing of their number."""
    classes = 10_000
    criterion = VarConLoss(
        centroids=MomentumCentroids(classes, D, num_negatives=negatives)
    )
    x, y = torch.randn(8, D, requires_grad=True), torch.randint(classes, (8,))
    state = [v for v in vars(criterion.centroids).values() if isinstance(v, Tensor)]
    with Sizes(state) as sizes:
        criterion(x, y).backward()
    assert max(sizes.made) <= (8 * classes if negatives is None else 8 * (8 + 50))


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


# --- when it moves ------------------------------------------------------------------


def content(criterion: VarConLoss) -> dict[str, Tensor]:
    return copy.deepcopy(criterion.state_dict())


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("steps", [1, 2])
def test_an_embedding_that_is_not_finite_moves_nothing(bad: float, steps: int) -> None:
    criterion = VarConLoss(centroids=bank(accumulation_steps=steps))
    for seed in range(steps):
        criterion(*batch(classes=C - 1, seed=seed))
    before = content(criterion)
    x, y = batch()
    y[0] = C - 1  # never seen: it must not enter either
    for row in (0, 1):
        broken = x.clone()
        broken[row, 2] = bad
        for _ in range(steps):
            assert criterion(broken, y).isnan()
    before.pop("centroids._extra_state")
    after = content(criterion)
    after.pop("centroids._extra_state")
    assert_same(after, before)
    assert not criterion.centroids.seen[C - 1]
    loss, gradient = value_and_gradient(criterion, x, y)
    assert loss.isfinite()
    assert gradient.isfinite().all()


def broken_on_one_rank(rank: int) -> dict[str, Tensor]:
    criterion = VarConLoss(centroids=bank())
    for step in range(6):
        x, y = batch(seed=10 * rank + step)
        if rank == 1 and step in (0, 3):
            x[3] = torch.inf
        assert criterion(x, y).isnan() == (step in (0, 3))
    return criterion.state_dict()


def test_an_embedding_that_is_not_finite_on_one_rank_moves_no_bank(run_ranks: Run):
    first, second = run_ranks(broken_on_one_rank, 2)
    assert_same(first, second)
    assert all(value.isfinite().all() for value in first.values())


def test_validation_without_gradients_moves_nothing() -> None:
    criterion = VarConLoss(centroids=bank())
    criterion(*batch(classes=4))
    before = content(criterion)
    x, y = batch(seed=1, classes=6)
    with torch.no_grad():
        loss = criterion(x, y)
    with torch.inference_mode():
        criterion(x, y)
    assert_same(content(criterion), before)
    assert loss == criterion.eval()(x, y)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_around_the_loss_is_refused(reentrant: bool) -> None:
    criterion = filled()
    x, y = batch()
    loss = checkpoint(criterion, x.requires_grad_(), y, use_reentrant=reentrant)
    with pytest.raises(RuntimeError, match="take the loss out of activation checkp"):
        loss.backward()


def test_a_second_derivative_after_the_bank_moved_is_refused() -> None:
    criterion = filled()
    x, y = batch()
    x.requires_grad_()
    loss = criterion(x, y)
    with pytest.raises(RuntimeError, match="put it in eval mode"):
        torch.autograd.grad(loss, x, create_graph=True)
    loss = criterion.eval()(x, y)
    assert torch.autograd.grad(loss, x, create_graph=True)[0].requires_grad


def test_a_bank_made_on_the_meta_device_starts_empty() -> None:
    with torch.device("meta"):
        criterion = VarConLoss(centroids=bank())
    criterion.to_empty(device="cpu")
    fresh = VarConLoss(centroids=bank())
    assert_same(content(criterion), content(fresh))
    assert criterion(*batch()) == fresh(*batch())
    criterion.centroids.reset_parameters()
    assert not criterion.centroids.seen.any()


def test_averaged_models_leave_the_bank_alone() -> None:
    model = Model()
    for use_buffers in (False, True):
        averaged = AveragedModel(model, use_buffers=use_buffers)
        for seed in range(3):
            model(*batch(seed=seed))
            averaged.update_parameters(model)
        assert averaged.module.criterion.centroids.means.isfinite().all()


def test_a_checkpoint_with_another_number_of_accumulation_steps() -> None:
    x, y = batch()
    for saved, loaded in ((2, 1), (1, 2), (3, 2)):
        source = filled(accumulation_steps=saved)
        source(x, y)  # waits, if there is room to wait
        target = VarConLoss(centroids=bank(accumulation_steps=loaded))
        state = content(source)
        target.load_state_dict(state)
        assert_same(state, content(source))  # it is the caller's
        if loaded == 1:  # what waited is applied
            whole = filled()
            whole.load_state_dict({**content(source), **empty_waiting(whole)})
            assert not torch.equal(target.centroids.means, whole.centroids.means)
            counts = source.centroids.counts + source.centroids.pending_counts
            assert torch.equal(target.centroids.counts, counts)
        else:
            assert torch.equal(target.centroids.means, source.centroids.means)
        assert target(x, y).isfinite()


def empty_waiting(criterion: VarConLoss) -> dict[str, Tensor]:
    state = content(criterion)
    return {name: x for name, x in state.items() if "pending" in name}


def test_a_checkpoint_of_another_size_is_refused() -> None:
    criterion = VarConLoss(centroids=bank())
    state = VarConLoss(centroids=MomentumCentroids(C + 1, D)).state_dict()
    with pytest.raises(RuntimeError, match=r"size mismatch for centroids\.means"):
        criterion.load_state_dict(state)
    del state["centroids.means"]
    with pytest.raises(RuntimeError, match=r'Missing key.* "centroids.means"'):
        criterion.load_state_dict(state)


class Model(nn.Module):
    """Network and loss in one module, as a user would wrap it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(D, D).double()
        self.norm = nn.BatchNorm1d(D).double()
        self.criterion = VarConLoss(centroids=bank())

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.criterion(self.norm(self.net(x)), y)


class Broadcasts(TorchDispatchMode):
    """Notes the size of each broadcast."""

    sizes: tuple[int, ...] = ()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if "broadcast_" in str(func):
            self.sizes += tuple(tensor.numel() for tensor in args[0])
        return func(*args, **(kwargs or {}))


def under_ddp(rank: int) -> tuple[tuple[int, ...], dict[str, Tensor]]:
    torch.manual_seed(0)
    model = Model()
    if rank == 0:  # only the first rank reads the checkpoint
        alone = VarConLoss(centroids=bank(), gather_distributed=False)
        alone(*batch(20, seed=9))
        model.criterion.load_state_dict(alone.state_dict())
    wrapped = DistributedDataParallel(model)  # torch's defaults
    wrapped(*batch(seed=rank)).backward()
    with Broadcasts() as broadcasts:
        for step in range(3):
            wrapped(*batch(seed=10 * step + rank)).backward()
    return broadcasts.sizes, model.criterion.state_dict()


def test_under_ddp_the_bank_is_shared_once_and_never_broadcast(run_ranks: Run):
    (sizes, first), (_, second) = run_ranks(under_ddp, 2)
    assert sizes, "batch norm's buffers are broadcast"
    assert max(sizes) <= 2 * 8 * D + 8  # and nothing else
    assert_same(first, second)
    assert int(first["centroids._extra_state"]) == 5
    assert first["centroids.counts"].sum() == 20 + 4 * 2 * 12


@pytest.mark.parametrize(
    "options", [{}, {"num_negatives": 4}, {"accumulation_steps": 2}]
)
def test_compiles_into_one_graph_once(options: dict[str, Any]) -> None:
    compilations = 0

    def backend(graph: Any, inputs: Any) -> Any:
        nonlocal compilations
        compilations += 1
        return lookup_backend("aot_eager")(graph, inputs)

    eager, module = filled(**options), filled(**options)
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    for seed in range(4):
        x, y = batch(seed=seed)
        expected = value_and_gradient(eager, x, y)
        for one, other in zip(
            value_and_gradient(compiled, x, y), expected, strict=True
        ):
            torch.testing.assert_close(one, other)
    assert compilations == 1
    for name, value in eager.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value)


def test_observers_get_no_graph() -> None:
    for criterion in (filled(), VarConLoss(detach_centroids=False)):
        seen = []
        criterion.register_observer(seen.append)
        x, y = batch()
        criterion(x.requires_grad_(), y)
        (observation,) = seen
        values = [observation.embeddings, *observation.references, *observation.terms]
        assert not any(isinstance(v, Tensor) and v.requires_grad for v in values)


def scaled_step(
    criterion: VarConLoss,
    layer: nn.Linear,
    scaler: torch.amp.GradScaler,
    seed: int,
    overflow: bool = False,
) -> bool:
    """A step under a gradient scaler; whether the weights moved."""
    optimizer = torch.optim.SGD(layer.parameters(), 1e-3)
    optimizer.zero_grad()
    before = layer.weight.detach().clone()
    for accumulated in range(criterion.centroids.accumulation_steps):
        x, y = batch(seed=seed + 100 * accumulated)
        loss = criterion(layer(x.float()), y)
        loss.register_hook(lambda grad: grad * (1e38 if overflow else 1))
        scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    return not torch.equal(before, layer.weight)


@pytest.mark.parametrize(
    "options", [{}, {"num_negatives": 4}, {"accumulation_steps": 2}]
)
def test_a_step_that_a_scaler_skips_moves_no_bank(options: dict[str, Any]) -> None:
    banks = []
    for skipped in (False, True):
        torch.manual_seed(0)
        layer, scaler = nn.Linear(D, D), torch.amp.GradScaler("cpu")
        criterion = VarConLoss(centroids=bank(**options).float())
        criterion.centroids.follow(scaler)
        assert scaled_step(criterion, layer, scaler, 0)
        if skipped:
            assert not scaled_step(criterion, layer, scaler, 1, overflow=True)
            criterion.centroids.steps -= options.get("accumulation_steps", 1)
        assert scaled_step(criterion, layer, scaler, 2)
        assert scaled_step(criterion, layer, scaler, 3)
        banks.append(content(criterion))
    assert_same(*banks)


def test_every_bank_in_a_module_follows() -> None:
    module = nn.ModuleList([filled(), filled()])
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))  # makes the scale
    follow_scaler(module, scaler)
    before = [criterion.centroids.means.clone() for criterion in module]
    x, y = batch()
    for criterion in module:
        criterion(x, y)
    scaler.update(4.0)  # as after a step that was skipped
    for criterion, means in zip(module, before, strict=True):
        assert not torch.equal(criterion.centroids.means, means)
        with torch.no_grad():
            criterion(x, y)  # a batch that does not train takes nothing back
        assert not torch.equal(criterion.centroids.means, means)
        criterion(x, y)
        assert int(criterion.centroids.counts.sum()) == 2 * C + len(x)
