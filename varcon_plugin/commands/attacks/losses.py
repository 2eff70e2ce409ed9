"""Batches that a loss meets once in a million, alone and on two ranks.

    python -m varcon_plugin.commands.ranks --standalone --nproc-per-node 2 \
        -m varcon_plugin.commands.attacks.losses SEED CASES

prints what two ranks tried, a line of JSON each.
"""

from __future__ import annotations

import json
import random
import sys
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from varcon_plugin import MomentumCentroids, VarConLoss
from varcon_plugin.commands.attacks.damage import EACH_ROUND
from varcon_plugin.commands.attacks.registry import (
    Arena,
    Trial,
    attack,
    finish,
    start,
)
from varcon_plugin.distributed import (
    active_group,
    any_rank,
    gather_equal,
    leave_group,
    rank_of,
    world_size,
)
from varcon_plugin.momentum import SAVED

__all__ = ["poisoned_bank", "rare_inputs"]

STEPS, CLASSES, DIM = 12, 6, 8
POISON = {"NaN": torch.nan, "inf": torch.inf, "-inf": -torch.inf}
OVERFLOW = "an overflow in half precision"
HELD = tuple(f"centroids.{name}" for name in SAVED)  # the rest counts the batches
LABELS = (
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
)
SCALES = {  # powers of two with which small whole numbers stay what they are
    torch.float64: 1000,
    torch.float32: 100,
    torch.bfloat16: 100,
    torch.float16: 9,
}


class Batch(NamedTuple):
    """A batch of all ranks, the same drawn by each.

    Attributes:
        embeddings: (N, D), float64, whole numbers up to 8, no row of zeros.
        labels: (N,).
    """

    embeddings: Tensor
    labels: Tensor


def draw(chance: random.Random, classes: int = CLASSES, dim: int = DIM) -> Batch:
    """A batch of 4 to 24 embeddings."""
    generator = torch.Generator().manual_seed(chance.randrange(2**31))
    samples = chance.randint(4, 24)
    size = torch.randint(1, 9, (samples, dim), generator=generator).double()
    sign = torch.randint(2, (samples, dim), generator=generator) * 2 - 1
    labels = torch.randint(classes, (samples,), generator=generator)
    return Batch(size * sign, labels)


def mine(tensor: Tensor) -> Tensor:
    """This rank's rows."""
    group = active_group()
    return tensor[rank_of(group) :: world_size(group)]


def everywhere(flag: bool) -> bool:
    """Whether ``flag`` is set on all ranks."""
    return not any_rank(not flag, active_group())


def poisonings(chance: random.Random, cases: int) -> Iterator[Trial]:
    """Banks that see bad batches between good ones, beside banks that do not."""
    for _ in range(cases):
        spread = chance.random() < 0.5
        victim, spared = (
            VarConLoss(centroids=MomentumCentroids(CLASSES, DIM, 0.9, sharded=spread))
            for _ in range(2)
        )
        held, kinds = True, []
        for _ in range(STEPS):
            batch = draw(chance)
            x, labels = mine(batch.embeddings.float()), mine(batch.labels)
            if chance.random() < 0.4:
                kinds.append(chance.choice([*POISON, OVERFLOW]))
                broken = mine(poisoned(batch.embeddings, kinds[-1], chance))
                held &= bool(victim(broken, labels).isnan())
            held &= torch.equal(victim(x, labels), spared(x, labels))
        states = victim.state_dict(), spared.state_dict()
        same = [torch.equal(states[0][name], states[1][name]) for name in HELD]
        held &= all(same)  # compared on all ranks, where the bank is spread
        where = f"{'a spread' if spread else 'a whole'} bank"
        yield Trial(f"{where} meets {', '.join(kinds) or 'nothing'}", everywhere(held))


def poisoned(embeddings: Tensor, kind: str, chance: random.Random) -> Tensor:
    """``embeddings`` with one bad number."""
    broken = embeddings.float()
    row, column = (chance.randrange(size) for size in broken.shape)
    broken[row, column] = POISON.get(kind, 1e5)
    return broken.half() if kind == OVERFLOW else broken


def rarities(chance: random.Random, cases: int) -> Iterator[Trial]:
    """Losses of unusual lengths and types beside those of the same, plain numbers."""
    group = active_group()
    for _ in range(cases):
        batch = draw(chance, chance.randint(1, 8), chance.choice((1, 2, 16, 65)))
        options: dict[str, Any] = chance.choice(
            ({}, {"leave_one_out": True}, {"num_classes": 8}, {"epsilon": 0.0})
        )
        dtypes = [chance.choice([*SCALES]) for _ in range(world_size(group))]
        label_type = chance.choice(LABELS)
        dtype = dtypes[rank_of(group)]
        powers = [chance.uniform(-1, 1) for _ in batch.labels]  # as many on every rank
        lengths = [2.0 ** round(SCALES[dtype] * power) for power in powers]
        x = batch.embeddings * torch.tensor(lengths, dtype=torch.float64)[:, None]
        x = mine(x).to(dtype).requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of batches whose loss is 0
            loss = VarConLoss(**options)(x, mine(batch.labels).to(label_type))
            expected = VarConLoss(gather_distributed=False, **options)(*batch)
        loss.backward()  # type: ignore[no-untyped-call]
        assert x.grad is not None
        found = loss.detach().double()
        if group is not None:
            found = gather_equal(found, group).mean()
        held = torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
        held &= bool(x.grad.isfinite().all())
        names = [str(kind).removeprefix("torch.") for kind in (*dtypes, label_type)]
        what = f"{tuple(batch.embeddings.shape)} {' '.join(names)} {options}"
        yield Trial(what, everywhere(held), f"{found} for {expected}")


def on_two_ranks(name: str, arena: Arena) -> Iterator[Trial]:
    """What two processes yield of a function of this module."""
    seed = arena.chance.randrange(2**31)
    launcher = ["python", "-m", "varcon_plugin.commands.ranks", "--standalone"]
    module = ["--nproc-per-node", 2, "-m", __name__, name, seed, arena.rounds]
    code, output = finish(start(*launcher, *module))
    tried = [json.loads(line) for line in output.splitlines() if line.startswith('["')]
    for what, survived, seen in tried:
        yield Trial(f"two ranks: {what}", survived, seen)
    if code or not tried:
        yield Trial("two ranks, to their end", survived=False, seen=output)


@attack("an embedding that is not finite leaves a bank as it was, on every rank")
def poisoned_bank(arena: Arena) -> Iterator[Trial]:
    """NaN, infinities and overflows between good batches."""
    yield from poisonings(arena.chance, EACH_ROUND * arena.rounds)
    yield from on_two_ranks("poisonings", arena)


@attack("the loss of rare lengths, dtypes and labels is that of plain ones")
def rare_inputs(arena: Arena) -> Iterator[Trial]:
    """Lengths over the whole range of each dtype, dtypes that differ between ranks."""
    yield from rarities(arena.chance, EACH_ROUND * arena.rounds)
    yield from on_two_ranks("rarities", arena)


def main(name: str, seed: int, rounds: int) -> None:
    """As one of several ranks."""
    dist.init_process_group("gloo")
    run = {"poisonings": poisonings, "rarities": rarities}[name]
    for trial in run(random.Random(seed), EACH_ROUND * rounds):
        if dist.get_rank() == 0:
            print(json.dumps(trial), flush=True)
    leave_group()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
