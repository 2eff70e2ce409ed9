"""Two gloo ranks get balanced global batches from every loop that drives the sampler.

The sampler is made in the process of the tests, before there is a process group.
"""

import os
from collections import Counter
from itertools import chain
from unittest.mock import patch

import pytest
import torch
from torch.utils.data import DataLoader

from varcon_plugin.training.sampler import ClassBalancedSampler

RANKS, CLASSES, EACH, BATCHES, EPOCHS = 2, 4, 2, 5, 2
SHARE = CLASSES * EACH // RANKS
LABELS = [c for c in range(9) for _ in range(3 + c)]  # 3 to 11 images a class


def create_sampler(**options):
    return ClassBalancedSampler(LABELS, CLASSES, EACH, num_batches=BATCHES, **options)


def check(of_ranks, labels=LABELS):
    """Every global batch of what the ranks got: epochs, of batches, of indices."""
    for epochs in of_ranks:
        assert [len(batches) for batches in epochs] == [BATCHES] * EPOCHS
    for epoch in range(EPOCHS):
        for shares in zip(*(epochs[epoch] for epochs in of_ranks), strict=True):
            assert [len(share) for share in shares] == [SHARE] * RANKS
            images = [int(index) for share in shares for index in share]
            assert len(set(images)) == CLASSES * EACH, "an image twice"
            classes = Counter(int(labels[index]) for index in images)
            assert sorted(classes.values()) == [EACH] * CLASSES
    assert of_ranks[0][0] != of_ranks[0][1], "the same order in both epochs"


def launched(rank):
    """The environment that torchrun gives a rank."""
    environment = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "GROUP_RANK": 0,
        "WORLD_SIZE": RANKS,
        "LOCAL_WORLD_SIZE": RANKS,
        "TORCHELASTIC_RUN_ID": "test",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": 1,  # unused: the process group exists
    }
    return patch.dict(os.environ, {k: str(v) for k, v in environment.items()})


def create_loader(sampler, batch_size=SHARE):
    return DataLoader(range(len(LABELS)), batch_size, sampler=sampler)


def in_plain_torch(rank, sampler):
    loader = create_loader(sampler)
    epochs = []
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        assert len(loader) == BATCHES
        epochs.append([batch.tolist() for batch in loader])
    return epochs


def test_plain_torch(run_ranks):
    check(run_ranks(in_plain_torch, RANKS, create_sampler()))


def in_lightning(rank, sampler, options, in_hook):
    from pytorch_lightning import LightningModule, Trainer

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))
            self.epochs = []

        def on_train_epoch_start(self):
            self.epochs.append([])

        def training_step(self, batch):
            self.epochs[-1].append(batch.tolist())
            return self.weight.sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

        if in_hook:

            def train_dataloader(self):
                return create_loader(sampler)

    module = Module()
    with launched(rank):
        trainer = Trainer(
            max_epochs=EPOCHS,
            accelerator="cpu",
            devices=RANKS,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )
        trainer.fit(module, None if in_hook else create_loader(sampler))
    assert trainer.num_training_batches == BATCHES
    return module.epochs


@pytest.mark.parametrize("in_hook", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "ddp"},
        {"strategy": "ddp", "use_distributed_sampler": False},
        {},
    ],
)
def test_lightning(run_ranks, options, in_hook):
    check(run_ranks(in_lightning, RANKS, create_sampler(), options, in_hook))


def in_fabric(rank, sampler):
    from lightning_fabric import Fabric

    with launched(rank):
        fabric = Fabric(accelerator="cpu", devices=RANKS, strategy="ddp")
        fabric.launch()
        loader = fabric.setup_dataloaders(create_loader(sampler))
        epochs = []
        for epoch in range(EPOCHS):
            sampler.set_epoch(epoch)
            epochs.append([batch.tolist() for batch in loader])
        return epochs


def test_fabric(run_ranks):
    check(run_ranks(in_fabric, RANKS, create_sampler()))


def in_accelerate(rank, function, *arguments):
    """``function(accelerator, *arguments)`` in one of the processes of Accelerate."""
    from accelerate.state import AcceleratorState, GradientState

    with launched(rank), patch.dict(os.environ, {"ACCELERATE_USE_CPU": "true"}):
        try:
            return function(*arguments)
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()


def create_accelerator(**options):
    from accelerate import Accelerator, DataLoaderConfiguration

    configuration = DataLoaderConfiguration(**options)
    accelerator = Accelerator(cpu=True, dataloader_config=configuration)
    assert accelerator.num_processes == RANKS
    return accelerator


def prepared(sampler, options, batch_size):
    accelerator = create_accelerator(**options)
    loader = accelerator.prepare(create_loader(sampler, batch_size))
    assert len(loader) == BATCHES
    epochs = []
    for epoch in range(EPOCHS):
        loader.set_epoch(epoch)
        epochs.append([batch.tolist() for batch in loader])
    return epochs


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("dispatch", [None, True, False])
def test_accelerate(run_ranks, dispatch, split, even):
    options = {
        "split_batches": split,
        "dispatch_batches": dispatch,
        "even_batches": even,
    }
    size = CLASSES * EACH if split else SHARE
    arguments = (create_sampler(), options, size)
    check(run_ranks(in_accelerate, RANKS, prepared, *arguments))


def skipping(sampler):
    from accelerate import skip_first_batches

    accelerator = create_accelerator()
    loader = accelerator.prepare(create_loader(sampler))
    whole = [batch.tolist() for batch in loader]
    sampler.set_epoch(0)
    loader.iteration = 0
    rest = skip_first_batches(loader, 2)
    return whole[2:], [batch.tolist() for batch in rest]


def test_accelerate_goes_on_within_an_epoch(run_ranks):
    for expected, found in run_ranks(in_accelerate, RANKS, skipping, create_sampler()):
        assert found == expected


def error_of(loader):
    try:
        list(loader)
    except (RuntimeError, ValueError) as error:
        return str(error)
    return "no error"


def refusals(sampler, rank):
    accelerator = create_accelerator()
    fixed = create_sampler(num_replicas=RANKS, rank=rank)
    by_hand = [batch.tolist() for batch in create_loader(fixed)]
    return by_hand, [
        error_of(create_loader(sampler)),
        error_of(accelerator.prepare(create_loader(fixed))),
        error_of(accelerator.prepare(create_loader(sampler, CLASSES * EACH))),
    ]


def refusals_on(rank, sampler):
    return in_accelerate(rank, refusals, sampler, rank)


def test_accelerate_without_its_loader_or_with_shares_of_shares(run_ranks):
    results = run_ranks(refusals_on, RANKS, create_sampler())
    for by_hand, errors in results:
        assert len(by_hand) == BATCHES
        assert "pass it to accelerator.prepare()" in errors[0]
        assert "leave num_replicas and rank of ClassBalancedSampler out" in errors[1]
        assert "images_per_class / 2 ranks = 4, got 8" in errors[2]
    shares = [set(chain.from_iterable(by_hand)) for by_hand, _ in results]
    assert shares[0] != shares[1]


def in_mmengine(rank):
    from mmengine.runner import Runner

    import varcon_plugin.mmpretrain  # noqa: F401  registers the sampler

    sampler = {
        "type": "mmpretrain.ClassBalancedSampler",
        "classes_per_batch": CLASSES,
        "images_per_class": EACH,
        "num_batches": BATCHES,
    }
    loader = Runner.build_dataloader(
        {
            "batch_size": SHARE,
            "num_workers": 0,
            "dataset": {"type": "mmpretrain.Digits"},
            "sampler": sampler,
        },
        seed=0,
    )
    epochs = []
    for epoch in range(EPOCHS):
        loader.sampler.set_epoch(epoch)
        epochs.append([batch["sample_idx"] for batch in loader])
    return epochs, loader.dataset.get_gt_labels()


def test_mmengine(run_ranks):
    results = run_ranks(in_mmengine, RANKS)
    check([epochs for epochs, _ in results], results[0][1])


def wrong_size(rank, sampler):
    return error_of(create_loader(sampler, CLASSES * EACH))


def test_the_batch_size_is_that_of_a_rank(run_ranks):
    for message in run_ranks(wrong_size, RANKS, create_sampler()):
        assert message == (
            "batch_size of the DataLoader must be classes_per_batch * images_per_class "
            "/ 2 ranks = 4, got 8"
        )
