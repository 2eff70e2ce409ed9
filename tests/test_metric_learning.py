"""Called as pytorch-metric-learning calls its losses."""

from typing import Any

import pytest
import torch
from pytorch_metric_learning import losses, miners, trainers
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from torch.utils.data import TensorDataset

from varcon_plugin import MomentumCentroids, VarConLoss

CLASSES, D = 3, 8


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(12, D, generator=torch.Generator().manual_seed(0))
    return x.requires_grad_(), torch.arange(12) % CLASSES


def test_indices_of_a_miner_are_refused() -> None:
    x, labels = batch()
    pairs: Any = miners.MultiSimilarityMiner()(x, labels)
    with pytest.raises(ValueError, match=r"one reference a class.*without a miner"):
        VarConLoss()(x, labels, pairs)
    with pytest.raises(ValueError, match="indices_tuple must be None"):
        VarConLoss()(x, labels, indices_tuple=pairs)
    assert torch.equal(VarConLoss()(x, labels, None), VarConLoss()(x, labels))


def test_multiple_losses_with_a_miner_for_another() -> None:
    x, labels = batch()
    triplet, miner = losses.TripletMarginLoss(), miners.MultiSimilarityMiner()
    both = losses.MultipleLosses(
        {"varcon": VarConLoss(), "triplet": triplet},
        miners={"triplet": miner},
        weights={"varcon": 1, "triplet": 0.5},
    )
    expected = VarConLoss()(x, labels) + 0.5 * triplet(x, labels, miner(x, labels))
    torch.testing.assert_close(both(x, labels), expected)
    mined = losses.MultipleLosses([VarConLoss(), triplet], miners=[miner, miner])
    with pytest.raises(ValueError, match="indices_tuple must be None"):
        mined(x, labels)


def fit(loss: VarConLoss, mining: Any = None) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % CLASSES
    images = 3 * torch.eye(CLASSES, D)[labels]
    images = images + torch.randn(96, D, generator=generator)
    trunk, embedder = torch.nn.Linear(D, D), torch.nn.Linear(D, D)
    trainers.MetricLossOnly(
        models={"trunk": trunk, "embedder": embedder},
        optimizers={"trunk_optimizer": torch.optim.SGD(trunk.parameters(), 0.1)},
        batch_size=32,
        loss_funcs={"metric_loss": loss},
        dataset=TensorDataset(images, labels),
        mining_funcs=mining,
        dataloader_num_workers=0,
        loss_weights={"metric_loss": 1},
        data_device=torch.device("cpu"),
    ).train(num_epochs=4)
    with torch.no_grad():
        images = embedder(trunk(images))
        last = VarConLoss()(images, labels)
    assert last < 0.5  # at chance 2 log 3 = 2.2


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True")
def test_metric_loss_only_trains_with_and_without_a_bank() -> None:
    torch.manual_seed(0)
    fit(VarConLoss())
    bank = MomentumCentroids(CLASSES, D)
    fit(VarConLoss(centroids=bank))
    assert bank.counts.sum() == 4 * 96
    with pytest.raises(ValueError, match="use it without a miner"):
        fit(VarConLoss(), {"tuple_miner": miners.MultiSimilarityMiner()})


def test_wrappers_that_would_gather_or_keep_embeddings_refuse_it() -> None:
    """Instead: class references span the ranks, and MomentumCentroids keeps them."""
    with pytest.raises(Exception, match="CrossBatchMemory not supported for VarCon"):
        losses.CrossBatchMemory(VarConLoss(), D)
    with pytest.raises(TypeError, match="must extend BaseMetricLossFunction"):
        DistributedLossWrapper(VarConLoss())
    with pytest.raises(Exception, match="SelfSupervisedLoss not supported for VarCon"):
        losses.SelfSupervisedLoss(VarConLoss())
