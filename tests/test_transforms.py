"""The loss under `torch.func`, and exported or compiled for batches of any size."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad, vmap

from varcon_plugin import MomentumCentroids, VarConLoss

CLASSES, D = 4, 6
OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_classes": CLASSES},
    {"leave_one_out": True},
    {"detach_centroids": False},
]


def batch(size: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.randn(size, D, generator=torch.Generator().manual_seed(seed))
    return x.double(), torch.arange(size) % CLASSES


def gradient(criterion: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    (found,) = torch.autograd.grad(criterion(x, labels), x)
    return found


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_func_grad_is_the_gradient(options: dict[str, Any]) -> None:
    x, labels = batch()
    criterion = VarConLoss(**options)
    found = grad(criterion)(x, labels)
    torch.testing.assert_close(found, gradient(criterion, x, labels))


def test_functional_call_of_a_model_with_its_loss() -> None:
    x, labels = batch()
    model, criterion = nn.Linear(D, D).double(), VarConLoss()

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return criterion(functional_call(model, parameters, (x,)), labels)

    found = grad(loss)(dict(model.named_parameters()))
    criterion(model(x), labels).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


@pytest.mark.parametrize("options", OPTIONS[1:2], ids=str)
def test_vmap_over_batches(options: dict[str, Any]) -> None:
    criterion = VarConLoss(**options)
    several = [batch(seed=seed) for seed in range(3)]
    x = torch.stack([embeddings for embeddings, _ in several])
    labels = torch.stack([ids.roll(seed) for seed, (_, ids) in enumerate(several)])
    expected = [criterion(*pair) for pair in zip(x, labels, strict=True)]
    torch.testing.assert_close(vmap(criterion)(x, labels), torch.stack(expected))
    gradients = [gradient(criterion, *pair) for pair in zip(x, labels, strict=True)]
    torch.testing.assert_close(vmap(grad(criterion))(x, labels), torch.stack(gradients))


def test_a_bank_does_not_move_inside_a_transform() -> None:
    x, labels = batch()
    criterion = VarConLoss(centroids=MomentumCentroids(CLASSES, D)).double()
    with pytest.raises(RuntimeError, match=r"torch.func.*eval\(\)"):
        grad(criterion)(x, labels)
    criterion(x.requires_grad_(), labels)
    criterion.eval()
    before = criterion.centroids.means.clone()
    found = grad(criterion)(x, labels)
    torch.testing.assert_close(found, gradient(criterion, x, labels))
    assert torch.equal(criterion.centroids.means, before)


class Model(nn.Module):
    """A network with its loss, which sees labels."""

    def __init__(self, criterion: VarConLoss) -> None:
        super().__init__()
        self.network = nn.Linear(D, D).double()
        self.criterion = criterion

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.criterion(self.network(x), labels)


@pytest.mark.parametrize("training", [False, True])
def test_exports_for_batches_of_any_size(training: bool) -> None:
    size = torch.export.Dim("size", min=2)
    model = Model(VarConLoss(num_classes=CLASSES)).train(training)
    program = torch.export.export(
        model, batch(), dynamic_shapes={"x": {0: size}, "labels": {0: size}}
    )
    for images in (12, 7, 200):
        found = program.module()(*batch(images))
        torch.testing.assert_close(found, model(*batch(images)))


def test_compiles_once_for_batches_of_any_size() -> None:
    criterion = VarConLoss(num_classes=CLASSES)
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(criterion, fullgraph=True, dynamic=True, backend=backend)
    graphs = set()
    for images in (12, 7, 200):
        x, labels = batch(images)
        expected = gradient(criterion, x, labels)
        torch.testing.assert_close(gradient(compiled, x, labels), expected)
        graphs.add(backend.frame_count)
    assert len(graphs) == 1
