import inspect
import warnings

import pytest
import torch
from lightly.loss import NTXentLoss

import varcon_plugin
from varcon_plugin.lightly import VarConLoss

N, D = 12, 8
LABELS = torch.arange(N) % 4


def embeddings(views, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(views, N, D, generator=generator).to(dtype)
    return [view.requires_grad_() for view in z]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.3, "epsilon": 0.1, "leave_one_out": True}]
)
@pytest.mark.parametrize("views", [1, 2, 5])
def test_value_and_gradient_are_the_core_s_to_the_last_bit(views, options, dtype):
    z = embeddings(views, dtype)
    loss = VarConLoss(**options)(*z, LABELS)
    expected = varcon_plugin.VarConLoss(**options)(torch.cat(z), LABELS.repeat(views))
    assert torch.equal(loss, expected)
    for ours, core in zip(
        torch.autograd.grad(loss, z), torch.autograd.grad(expected, z), strict=True
    ):
        assert torch.equal(ours, core)


def test_labels_may_be_given_by_name():
    z = embeddings(2)
    criterion = VarConLoss()
    assert torch.equal(criterion(*z, labels=LABELS), criterion(*z, LABELS))


def test_several_views_in_one_tensor_take_repeated_labels():
    z = embeddings(2)
    criterion = VarConLoss()
    joined = criterion(torch.cat(z), LABELS.repeat(2))
    assert torch.equal(joined, criterion(*z, LABELS))


def test_components_are_those_of_all_views():
    terms = VarConLoss(reduction="none").forward_components(*embeddings(3), LABELS)
    assert {term.shape for term in terms} == {(3 * N,)}


def test_length_of_the_embeddings_does_not_matter():
    z = embeddings(2)
    scaled = [view * 7 for view in z]
    torch.testing.assert_close(VarConLoss()(*scaled, LABELS), VarConLoss()(*z, LABELS))


def test_arguments_of_ntxent_are_understood_with_its_gather_default():
    theirs = inspect.signature(NTXentLoss.__init__).parameters
    ours = inspect.signature(VarConLoss.__init__).parameters
    assert ours["gather_distributed"].default == theirs["gather_distributed"].default
    assert VarConLoss(temperature=0.5, gather_distributed=True).gather_distributed
    assert list(ours)[1] == list(theirs)[1] == "temperature"


def test_unknown_and_illegal_arguments_are_refused():
    with pytest.raises(TypeError, match="memory_bank_size"):
        VarConLoss(memory_bank_size=10)
    with pytest.raises(ValueError, match="epsilon must be"):
        VarConLoss(temperature=0.1, epsilon=0.1)


Z0, Z1 = torch.randn(N, D), torch.randn(N, D)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((), ValueError, r"got 0 argument.*write criterion\(z0, z1, labels\)"),
        ((Z0,), ValueError, r"got 1 argument.*labels is batch\[1\]"),
        ((Z0, Z1), ValueError, r"labels are missing.*\(12, 8\).*z1, labels"),
        ((LABELS, Z0, Z1), ValueError, r"last, got them as argument 0.*z1, labels"),
        ((Z0, LABELS, Z1), ValueError, r"last, got them as argument 1.*z1, labels"),
        (([Z0, Z1], LABELS), TypeError, r"list of views; write criterion\(\*views"),
        ((Z0, Z1, [0] * N), TypeError, r"argument 2 is a list"),
        ((Z0, Z1, None), TypeError, r"argument 2 must be a tensor, got NoneType"),
        ((Z0, Z1[:5], LABELS), ValueError, r"same shape.*\(12, 8\), \(5, 8\)"),
        ((Z0, Z1[:, :3], LABELS), ValueError, r"same shape.*\(12, 8\), \(12, 3\)"),
        ((Z0, Z1, LABELS.repeat(2)), ValueError, r"for each image \(12,\), got 24"),
        ((Z0, Z1, LABELS[:7]), ValueError, r"for each image \(12,\), got 7"),
        ((torch.cat([Z0, Z1]), LABELS), ValueError, r"criterion\(\*z.chunk\(2\)"),
        ((Z0, LABELS[:7]), ValueError, r"same length, got 12 and 7"),
        ((Z0, Z1, LABELS.float()), TypeError, r"integer class ids, got torch.float32"),
        ((Z0, Z1, LABELS[:, None]), ValueError, r"1-D class ids .*got shape \(12, 1\)"),
        (
            (Z0[None], Z1[None], LABELS),
            ValueError,
            r"2-D \(N, D\), .* got shape \(1, 12, 8\)",
        ),
        ((Z0[:0], Z1[:0], LABELS[:0]), ValueError, r"empty batch"),
    ],
)
def test_a_wrong_call_says_what_to_write(arguments, error, message):
    with pytest.raises(error, match=message):
        VarConLoss()(*arguments)


def _unequal_batches(rank, options):
    """Loss and gradient of rank's share: 5 images on one rank, 7 on the other."""
    mine = slice(0, 5) if rank == 0 else slice(5, N)
    z = [view.detach()[mine].requires_grad_() for view in embeddings(2, torch.float64)]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        criterion = VarConLoss(**options)
        loss = criterion(*z, LABELS[mine])
        criterion(*z, LABELS[mine])
    loss.backward()
    return loss.detach(), [v.grad for v in z], [str(w.message) for w in said]


def test_gathering_ranks_equal_one_process(run_ranks):
    results = run_ranks(_unequal_batches, 2, {"gather_distributed": True})
    z = embeddings(2, torch.float64)
    expected = VarConLoss()(*z, LABELS)
    gradients = torch.autograd.grad(expected, z)
    torch.testing.assert_close(sum(r[0] for r in results) / 2, expected.detach())
    for view, gradient in enumerate(gradients):
        mean = torch.cat([result[1][view] for result in results]) / 2
        torch.testing.assert_close(mean, gradient, rtol=0, atol=1e-12)
    assert [result[2] for result in results] == [[], []]


def test_ranks_that_do_not_gather_are_told_once_and_stay_apart(run_ranks):
    for rank, (loss, _, said) in enumerate(run_ranks(_unequal_batches, 2, {})):
        mine = slice(0, 5) if rank == 0 else slice(5, N)
        z = [view[mine] for view in embeddings(2, torch.float64)]
        assert torch.equal(loss, VarConLoss()(*z, LABELS[mine]).detach())
        (warning,) = said
        assert "gather_distributed=True" in warning


def _one_rank_forgets_labels(rank):
    arguments = (Z0, Z1) if rank == 0 else (Z0, Z1, LABELS)
    try:
        VarConLoss(gather_distributed=True)(*arguments)
    except (ValueError, RuntimeError) as error:
        return str(error)
    return "no error"


def test_a_wrong_call_on_one_rank_stops_all(run_ranks):
    messages = run_ranks(_one_rank_forgets_labels, 2)
    assert "labels are missing" in messages[0]
    assert "rank 0 of 2 got arguments" in messages[1]


def test_keys_of_a_momentum_encoder_are_no_view():
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 8, 4, generator=generator)
    labels = torch.arange(8) % 2
    query.requires_grad_()
    criterion = VarConLoss()
    with pytest.raises(ValueError, match="view 1 carries no gradient and others do"):
        criterion(query, key, labels)
    criterion(query, labels, reference_embeddings=key).backward()
    assert query.grad.abs().sum() > 0
    with torch.no_grad():
        assert criterion(query, key, labels).isfinite()
