"""`VarConLoss` on one process: arguments, options, numerics."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from reference import varcon
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from varcon_plugin import VarConLoss
from varcon_plugin.functional import normalize, varcon_terms
from varcon_plugin.momentum import MomentumCentroids

F64 = torch.float64


def batch(
    n: int = 24, c: int = 5, d: int = 8, dtype: torch.dtype = F64
) -> tuple[Tensor, Tensor]:
    """Embeddings of any length, and labels of which each class has some."""
    return torch.randn(n, d, dtype=dtype), torch.randperm(n) % c


def value_and_gradient(
    embeddings: Tensor, labels: Tensor, upstream: float = 1.0, **options: Any
) -> tuple[Tensor, Tensor]:
    x = embeddings.detach().requires_grad_()
    loss = VarConLoss(**options)(x, labels)
    (grad,) = torch.autograd.grad(upstream * loss.sum(), x)
    return loss.detach(), grad


def assert_equal(actual: Any, expected: Any, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# --- the objective ------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 7.0])
@pytest.mark.parametrize("detach", [True, False], ids=["detached", "attached"])
def test_golden_vectors(golden: dict[str, Any], scale: float, detach: bool) -> None:
    """Their gradient is for unit rows; through the normalisation it is tangential."""
    z = golden["features"]
    x = (scale * z).requires_grad_()
    criterion = VarConLoss(**golden["settings"], detach_centroids=detach)
    terms = criterion.forward_components(x, golden["labels"])
    assert_equal(terms.loss.detach(), golden["loss"])
    assert_equal(terms.kl.mean(), golden["kl"])
    assert_equal(terms.nll.mean(), golden["nll"])
    assert_equal(terms.tau2, golden["tau2"])
    if detach:
        terms.loss.backward()
        g = golden["grad_features"]
        assert_equal(x.grad, (g - (g * z).sum(1, keepdim=True) * z) / scale)


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("num_classes", [None, 7, 1000])
def test_equals_loops_over_the_equations(
    leave_one_out: bool, num_classes: int | None
) -> None:
    x, labels = batch(13, 4, 3)
    labels[0] = 6  # alone in its class
    expected = varcon(x.tolist(), labels.tolist(), 0.3, 0.2, leave_one_out)
    settings: Any = {"leave_one_out": leave_one_out, "num_classes": num_classes}
    terms = VarConLoss(0.3, 0.2, reduction="none", **settings).forward_components(
        x, labels
    )
    for name in ("loss", "kl", "nll"):
        expectation = torch.tensor([row[name] for row in expected], dtype=F64)
        assert_equal(getattr(terms, name), expectation)
    counted = len(labels) - leave_one_out
    mean = VarConLoss(0.3, 0.2, **settings)(x, labels)
    assert_equal(mean.item(), sum(row["loss"] for row in expected) / counted)


def test_components_are_detached_but_the_loss() -> None:
    x, labels = batch()
    x.requires_grad_()
    for detach in (True, False):
        criterion = VarConLoss(detach_centroids=detach)
        terms = criterion.forward_components(x, labels)
        assert [t.requires_grad for t in terms] == [True] + [False] * 4
        assert terms.loss.equal(criterion(x, labels))
        assert [t.shape for t in terms[1:]] == [labels.shape] * 4
        assert_equal(terms.loss, (terms.kl + terms.nll).mean())


def test_scale_of_the_embeddings_does_not_matter() -> None:
    x, labels = batch()
    loss, grad = value_and_gradient(x, labels)
    scaled = value_and_gradient(50 * x, labels)
    assert_equal(scaled, (loss, grad / 50))


def test_order_of_the_batch_and_names_of_the_classes_do_not_matter() -> None:
    x, labels = batch()
    expected = value_and_gradient(x, labels)
    order = torch.randperm(len(labels))
    loss, grad = value_and_gradient(x[order], labels[order])
    assert_equal((loss, grad), (expected[0], expected[1][order]))
    names = torch.tensor([2**60, -5, 3, 0, -(2**62)])
    assert_equal(value_and_gradient(x, names[labels]), expected)


def test_rotation_of_the_embeddings_does_not_matter() -> None:
    x, labels = batch()
    rotation = torch.linalg.qr(torch.randn(8, 8, dtype=F64)).Q
    loss, grad = value_and_gradient(x, labels)
    assert_equal(value_and_gradient(x @ rotation, labels), (loss, grad @ rotation))


def test_references_may_come_from_other_embeddings() -> None:
    x, labels = batch()
    other = torch.randn_like(x, requires_grad=True)
    sums = torch.zeros(5, 8, dtype=F64).index_add_(0, labels, normalize(other))
    x.requires_grad_()
    loss = VarConLoss()(x, labels, reference_embeddings=other)
    terms = varcon_terms(
        normalize(x), labels, normalize(sums.detach()), temperature=0.1, epsilon=0.02
    )
    assert_equal(loss, terms.loss.mean())
    (grad,) = torch.autograd.grad(loss, x)
    assert grad.abs().sum() > 0
    assert_equal(
        VarConLoss()(x, labels, reference_embeddings=x), VarConLoss()(x, labels)
    )
    bank = MomentumCentroids(5, 8, momentum=0)
    VarConLoss(centroids=bank)(x, labels, reference_embeddings=other)
    assert_equal(normalize(bank.means), normalize(sums).detach().float(), 1e-6)
    with pytest.raises(ValueError, match=r"shape of embeddings, \(24, 8\), got \(3, 8"):
        VarConLoss()(x, labels, reference_embeddings=other[:3])
    with pytest.raises(TypeError, match=r"a floating tensor, got torch\.int64"):
        VarConLoss()(x, labels, reference_embeddings=labels)


def test_epsilon_zero_is_a_fixed_target() -> None:
    x, labels = batch()
    terms = VarConLoss(0.1, 0.0).forward_components(x, labels)
    assert_equal(terms.tau2, torch.full_like(terms.tau2, 0.1))


UNSIGNED = [torch.uint8, torch.uint16, torch.uint32, torch.uint64]


@pytest.mark.parametrize("dtype", [*UNSIGNED, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("num_classes", [5, 24, 25, 10**9])
def test_num_classes_changes_nothing_but_the_shapes(
    dtype: torch.dtype, num_classes: int
) -> None:
    x, labels = batch()
    for options in ({}, {"leave_one_out": True}, {"detach_centroids": False}):
        expected = value_and_gradient(x, labels, **options)
        options = {**options, "num_classes": num_classes}
        assert_equal(value_and_gradient(x, labels.to(dtype), **options), expected)


# --- options ------------------------------------------------------------------------


def explicit_loss(x: Tensor, labels: Tensor, detach: bool, without_own: bool) -> Tensor:
    """The options spelled out on top of the specification, sample by sample."""
    z = x / x.norm(dim=1, keepdim=True)
    members = z.detach() if detach else z
    classes, targets = labels.unique(return_inverse=True)
    losses = []
    for i, t in enumerate(targets):
        rows = []
        for c in range(len(classes)):
            member = targets == c
            if without_own and c == t:
                member[i] = False
            mean = members[member].mean(dim=0)
            rows.append(mean / mean.norm())
        terms = varcon_terms(
            z[i : i + 1], t[None], torch.stack(rows), temperature=0.2, epsilon=0.1
        )
        losses.append(terms.loss[0])
    return torch.stack(losses)


@pytest.mark.parametrize("detach", [True, False], ids=["detached", "attached"])
@pytest.mark.parametrize("leave_one_out", [True, False], ids=["without_own", "batch"])
@pytest.mark.parametrize("num_classes", [None, 5])
def test_options_and_their_gradients(
    detach: bool, leave_one_out: bool, num_classes: int | None
) -> None:
    x, labels = batch(15, 4)
    x.requires_grad_()
    expected = explicit_loss(x, labels, detach, leave_one_out)
    options: Any = {
        "detach_centroids": detach,
        "leave_one_out": leave_one_out,
        "num_classes": num_classes,
    }
    actual = VarConLoss(0.2, 0.1, reduction="none", **options)(x, labels)
    assert_equal(actual, expected)
    weight = torch.rand(15, dtype=F64)
    grads = [
        torch.autograd.grad((weight * loss).sum(), x, retain_graph=True)
        for loss in (actual, expected)
    ]
    assert_equal(*grads)
    mean = VarConLoss(0.2, 0.1, **options)(x, labels)
    assert_equal(mean, actual.mean())
    assert_equal(
        torch.autograd.grad(mean, x),
        torch.autograd.grad(actual.mean(), x, retain_graph=True),
    )


@pytest.mark.parametrize("leave_one_out", [True, False])
def test_gradcheck_with_gradient_into_the_centroids(leave_one_out: bool) -> None:
    """Detached centroids would fail it: the value moves with them."""
    x, labels = batch(7, 3, 3)
    x.requires_grad_()
    options: Any = {"detach_centroids": False, "leave_one_out": leave_one_out}
    criterion = VarConLoss(0.3, 0.2, **options)
    assert torch.autograd.gradcheck(lambda x: criterion(x, labels), x)
    assert torch.autograd.gradgradcheck(lambda x: criterion(x, labels), x)


def test_second_derivative_of_the_default() -> None:
    x, labels = batch(7, 3, 3)
    z = normalize(x)
    x.requires_grad_()
    (first,) = torch.autograd.grad(VarConLoss()(x, labels), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    centroids = normalize(torch.stack([z[labels == c].sum(0) for c in range(3)]))
    explicit = varcon_terms(
        normalize(x), labels, centroids, temperature=0.1, epsilon=0.02
    )
    (first,) = torch.autograd.grad(explicit.loss.mean(), x, create_graph=True)
    assert_equal(second, torch.autograd.grad(first.square().sum(), x)[0], 1e-9)


def test_leave_one_out_lowers_the_confidence_of_random_embeddings() -> None:
    x, labels = batch(400, 150, 64)
    published = VarConLoss().forward_components(x, labels).confidence.mean()
    without_own = VarConLoss(leave_one_out=True).forward_components(x, labels)
    assert published > 0.5
    assert without_own.confidence.mean() < 0.05


def test_leave_one_out_leaves_samples_without_classmates_out() -> None:
    x, labels = batch(9, 3)
    labels[4] = 77
    loss, grad = value_and_gradient(x, labels, leave_one_out=True)
    assert grad[4].count_nonzero() == 0
    none = VarConLoss(leave_one_out=True, reduction="none")(x, labels)
    assert none[4] == 0
    assert_equal(loss, none.sum() / 8)


# --- degenerate batches -------------------------------------------------------------


@pytest.mark.parametrize("num_classes", [None, 3, 9])
def test_single_class_gives_zero_and_warns_once(num_classes: int | None) -> None:
    x = torch.randn(4, 3, requires_grad=True)
    criterion = VarConLoss(num_classes=num_classes)
    with pytest.warns(UserWarning, match="single class"):
        loss = criterion(x, torch.full((4,), 2))
    loss.backward()
    assert loss.item() == 0
    assert x.grad.count_nonzero() == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        criterion(x, torch.full((4,), 2))


def test_leave_one_out_of_singletons_gives_zero_and_warns() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    with pytest.warns(UserWarning, match="no sample of the batch has a classmate"):
        loss = VarConLoss(leave_one_out=True)(x, torch.arange(4))
    loss.backward()
    assert loss.item() == 0
    assert x.grad.count_nonzero() == 0


SITUATIONS = {
    "random": lambda: (torch.randn(12, 16), torch.arange(12) % 4),
    "identical": lambda: (torch.ones(12, 16), torch.arange(12) % 4),
    "size 1e4": lambda: (1e4 * torch.randn(12, 16).sign(), torch.arange(12) % 4),
    "size 1e-4": lambda: (1e-4 * torch.randn(12, 16), torch.arange(12) % 4),
    "zero vectors": lambda: (torch.zeros(12, 16), torch.arange(12) % 4),
    "zero class mean": lambda: (
        torch.cat([torch.eye(4, 16), -torch.eye(4, 16)]),
        torch.arange(8) % 4,
    ),
    "opposite": lambda: (
        torch.ones(8, 16) * (torch.arange(8) % 2 * 2 - 1)[:, None],
        torch.arange(8) % 2,
    ),
    "one class": lambda: (torch.randn(6, 16), torch.zeros(6, dtype=torch.int64)),
    "singletons": lambda: (torch.randn(6, 16), torch.arange(6)),
    "one sample": lambda: (torch.randn(1, 16), torch.zeros(1, dtype=torch.int64)),
}
OPTIONS = [
    {},
    {"num_classes": 12},
    {"leave_one_out": True},
    {"detach_centroids": False},
    {"detach_centroids": False, "leave_one_out": True},
]


@pytest.mark.filterwarnings("ignore:VarConLoss is 0")
@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
@pytest.mark.parametrize("situation", SITUATIONS)
def test_finite_for_every_legal_setting(
    situation: str, dtype: torch.dtype, autocast: bool
) -> None:
    embeddings, labels = SITUATIONS[situation]()
    embeddings = embeddings.to(dtype)
    for temperature in (1e-3, 0.011, 0.03, 0.1, 1.0, 10.0):
        for epsilon in (0.0, temperature / 2, math.nextafter(temperature, 0)):
            for options in OPTIONS:
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    loss, grad = value_and_gradient(
                        embeddings,
                        labels,
                        temperature=temperature,
                        epsilon=epsilon,
                        **options,
                    )
                case = (temperature, epsilon, options)
                assert loss.isfinite(), case
                assert loss >= -1e-5, case
                assert grad.isfinite().all() or _overflows(grad, embeddings), case
                assert grad.dtype == dtype
                assert loss.dtype == torch.promote_types(dtype, torch.float32)


def _overflows(grad: Tensor, embeddings: Tensor) -> bool:
    """Whether the true gradient is larger than float16 can say, as for tiny inputs."""
    return grad.dtype == torch.float16 and not grad.isnan().any()


@pytest.mark.filterwarnings("ignore:VarConLoss is 0")
@pytest.mark.parametrize("temperature", [1e-18, 1e-9, 1e9, 1e18])
@pytest.mark.parametrize("situation", SITUATIONS)
def test_finite_at_the_ends_of_the_temperature_range(
    situation: str, temperature: float
) -> None:
    embeddings, labels = SITUATIONS[situation]()
    for epsilon in (0.0, temperature / 2, math.nextafter(temperature, 0)):
        for options in OPTIONS:
            loss, grad = value_and_gradient(
                embeddings, labels, temperature=temperature, epsilon=epsilon, **options
            )
            assert loss.isfinite()
            assert grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.5])
def test_half_precision_costs_no_more_than_rounding_the_input(
    dtype: torch.dtype, autocast: bool, temperature: float
) -> None:
    x, labels = batch(96, 12, 32)
    x += 2 * torch.randn(12, 32, dtype=F64)[labels]  # some structure
    settings: Any = {"temperature": temperature, "epsilon": temperature / 5}
    settings["upstream"] = 2.0**12  # as a gradient scaler: float16 is coarse near 0
    truth, true_grad = value_and_gradient(x, labels, **settings)
    rounded, rounded_grad = value_and_gradient(x.to(dtype).to(F64), labels, **settings)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours, our_grad = value_and_gradient(x.to(dtype), labels, **settings)

    single = 1e-5  # what float32 adds inside
    assert (ours - truth).abs() <= (rounded - truth).abs() + single * truth
    budget = (rounded_grad - true_grad).norm() + single * true_grad.norm()
    budget += torch.finfo(dtype).eps / 2 * true_grad.norm()  # rounding the result
    assert (our_grad.to(F64) - true_grad).norm() <= budget


def test_float32_agrees_with_float64() -> None:
    x, labels = batch(200, 20, 32)
    expected = value_and_gradient(x, labels)
    actual = value_and_gradient(x.float(), labels)
    assert_equal(actual[0].double(), expected[0], 1e-6)
    assert_equal(actual[1].double(), expected[1], 1e-7)


def test_deterministic() -> None:
    x, labels = batch(500, 60, 16, torch.float32)
    first = value_and_gradient(x, labels)
    for _ in range(3):
        again = value_and_gradient(x, labels)
        assert all(a.equal(b) for a, b in zip(first, again, strict=True))


# --- work that is not done ----------------------------------------------------------


@pytest.mark.parametrize("num_classes", [10, 1000])
@pytest.mark.parametrize("leave_one_out", [False, True])
def test_num_classes_never_waits_for_the_device(
    num_classes: int, leave_one_out: bool
) -> None:
    """A tensor without data cannot be read by the host: any attempt raises."""
    with FakeTensorMode():
        x = torch.randn(64, 8, device="cuda", requires_grad=True)
        labels = torch.zeros(64, dtype=torch.int64, device="cuda")
        criterion = VarConLoss(num_classes=num_classes, leave_one_out=leave_one_out)
        assert criterion(x, labels).requires_grad


@pytest.mark.parametrize("num_classes", [10, 1000])
@pytest.mark.parametrize(
    "options", [{}, {"leave_one_out": True}, {"detach_centroids": False}], ids=str
)
def test_compiles_into_one_graph(num_classes: int, options: Any) -> None:
    x, labels = batch(64, 10, 8, torch.float32)
    criterion = VarConLoss(num_classes=num_classes, **options)
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    grads = []
    for function in (criterion, compiled):
        z = x.clone().requires_grad_()
        loss = function(z, labels)
        loss.backward()
        grads.append((loss.detach(), z.grad))
    assert_equal(grads[1], grads[0], 1e-6)


def test_importing_the_core_loads_torch_alone() -> None:
    code = """
import sys, torch
before = set(sys.modules)
import varcon_plugin
new = {name.split(".")[0] for name in set(sys.modules) - before}
third_party = new - set(sys.stdlib_module_names) - {"varcon_plugin", "torch"}
assert not third_party, third_party
hosts = {"mmengine", "mmcv", "mmpretrain", "lightly", "timm", "pytorch_lightning"}
assert not hosts & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# --- arguments ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature must be > 0"),
        ({"temperature": -0.1}, "temperature must be > 0"),
        ({"temperature": math.nan}, "temperature .* got nan"),
        ({"temperature": math.inf}, "temperature .* got inf"),
        ({"temperature": 1e-30}, "temperature .* got 1e-30"),
        ({"epsilon": -0.01}, r"epsilon must be in \[0, temperature\), got -0.01"),
        ({"epsilon": 0.1}, r"epsilon must be in \[0, temperature\), got 0.1"),
        ({"epsilon": math.nan}, "epsilon .* got nan"),
        ({"num_classes": 0}, "num_classes must be None or >= 1, got 0"),
        ({"reduction": "batchmean"}, "reduction must be .* got 'batchmean'"),
    ],
    ids=str,
)
def test_settings_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VarConLoss(**arguments)


def test_process_group_without_gathering_is_a_contradiction() -> None:
    group: Any = object()
    with pytest.raises(ValueError, match="gather_distributed is False"):
        VarConLoss(process_group=group, gather_distributed=False)


def test_several_views_of_an_image_in_one_tensor() -> None:
    """(B, V, D), as SupCon's code has it."""
    x, labels = batch(15, 4)
    views = x.view(5, 3, -1)
    for reduction in ("mean", "sum", "none"):
        criterion = VarConLoss(reduction=reduction)
        expected = criterion(x, labels[:5].repeat_interleave(3))
        assert torch.equal(criterion(views, labels[:5]), expected)
    assert_equal(VarConLoss(reduction="sum")(x, labels), 15 * VarConLoss()(x, labels))


@pytest.mark.parametrize("size", [1e-44, 1e-37, 1e-22, 1e19, 1e37])
@pytest.mark.parametrize("options", [{}, {"leave_one_out": True}], ids=str)
def test_any_length_of_the_embeddings(size: float, options: dict[str, Any]) -> None:
    x = torch.randn(12, 16).sign() * torch.randint(1, 8, (12, 16))
    labels = torch.arange(12) % 4
    loss, grad = value_and_gradient(x, labels, **options)
    exact = 2.0 ** round(math.log2(size))
    scaled, scaled_grad = value_and_gradient(x * exact, labels, **options)
    torch.testing.assert_close(scaled, loss, rtol=2e-3 if size < 1e-37 else 0, atol=0)
    if 1e-37 < size < 1e37:  # beyond, the gradient leaves float32
        torch.testing.assert_close(scaled_grad * exact, grad, rtol=1e-5, atol=1e-9)
    assert size == 1e-44 or scaled_grad.isfinite().all()  # there it overflows


def test_norms_beyond_the_squares_of_float64() -> None:
    x, labels = batch(12, 4)
    for size in (2.0**600, 2.0**-600):
        assert torch.equal(VarConLoss()(x * size, labels), VarConLoss()(x, labels))


def test_the_warning_points_at_the_line_that_called() -> None:
    x, labels = torch.randn(4, 3), torch.zeros(4, dtype=torch.int64)
    for criterion in (VarConLoss(), torch.nn.Sequential(VarConLoss())[0]):
        with pytest.warns(UserWarning, match="single class") as found:
            criterion(x, labels)
        assert found[0].filename == __file__


def test_labels_out_of_range_in_a_compiled_loss_say_so() -> None:
    compiled = torch.compile(VarConLoss(num_classes=3), backend="aot_eager")
    compiled(X, torch.tensor([0, 1, 2, 0]))
    with pytest.raises(RuntimeError, match=r"labels must be in \[0, 3\)"):
        compiled(X, torch.tensor([0, 1, 3, 0]))


def test_a_device_checks_the_labels_without_waiting() -> None:
    """On a tensor without data, that says it is on a GPU."""
    calls = []

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            calls.append((str(func), *args[1:]))
            return func(*args, **(kwargs or {}))

    with FakeTensorMode():
        x = torch.randn(64, 8, device="cuda")
        labels = torch.zeros(64, dtype=torch.int64, device="cuda")
        with Calls():
            VarConLoss(num_classes=3)(x, labels)
    assert ("aten._assert_async.msg", "labels must be in [0, 3)") in calls


X, Y = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("embeddings", "labels", "error", "message"),
    [
        ([[1.0]], Y, TypeError, "embeddings must be a tensor, got list"),
        (X, [0, 1, 0, 1], TypeError, "labels must be a tensor, got list"),
        (X[None], Y, ValueError, r"embeddings must be 2-D .* got shape \(1, 4, 3\)"),
        (X.long(), Y, TypeError, "embeddings must be floating, got torch.int64"),
        (X.cfloat(), Y, TypeError, "embeddings must be floating, got torch.complex64"),
        (X, Y[:, None], ValueError, r"labels must be 1-D .* multi-hot"),
        (X, torch.eye(4).long(), ValueError, r"labels must be 1-D .* multi-hot"),
        (X, Y.float(), TypeError, "labels must be integer class ids, got torch.float"),
        (X, Y.bool(), TypeError, "labels must be integer class ids, got torch.bool"),
        (X, Y[:2], ValueError, "same length, got 4 and 2; repeat the labels"),
        (X[:0], Y[:0], ValueError, "at least one sample, got an empty batch"),
        (X[:, :0], Y, ValueError, "at least one dimension, got D = 0"),
    ],
)
def test_wrong_batches(
    embeddings: Any, labels: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        VarConLoss()(embeddings, labels)


@pytest.mark.parametrize("label", [-1, 2])
def test_label_outside_of_num_classes(label: int) -> None:
    labels = torch.tensor([0, 1, 0, label])
    with pytest.raises(ValueError, match=rf"labels must be in .* got {label}"):
        VarConLoss(num_classes=2)(X, labels)


@pytest.mark.parametrize("label", [-1, -100])
@pytest.mark.parametrize("num_classes", [None, 2])
def test_there_is_no_ignore_index(label: int, num_classes: int | None) -> None:
    criterion = VarConLoss(num_classes=num_classes)
    labels = torch.tensor([0, 1, 0, label])
    with pytest.raises(ValueError, match=rf"got {label}; .*leave samples without a la"):
        criterion(X, labels)
    assert criterion(X[labels >= 0], labels[labels >= 0]).isfinite()
    arguments: Any = {"ignore_index": label}
    with pytest.raises(TypeError, match="ignore_index"):
        VarConLoss(**arguments)


def test_repr_names_the_settings() -> None:
    text = repr(VarConLoss(0.2, 0.1, num_classes=3))
    assert "temperature=0.2, epsilon=0.1" in text
    assert "num_classes=3" in text


def test_has_no_state() -> None:
    assert not VarConLoss().state_dict()
