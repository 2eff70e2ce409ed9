"""Is this run healthy? Measures of one batch, as pure functions.

Each says its range, what a healthy run shows and where it comes from. The functions
that take ``sums`` and ``counts`` want those of `varcon_plugin.functional.class_sums`,
added up over the ranks: they are then exact for the global batch, and no embedding
travels. `varcon_plugin.health.monitor.measure` computes all of them at once.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from varcon_plugin.distributed import sum_across_ranks
from varcon_plugin.functional import normalize, target_distribution

__all__ = [
    "CentroidSimilarity",
    "alignment",
    "bound_shares",
    "centroid_similarity",
    "chance_level",
    "classes_in_batch",
    "dispersion",
    "effective_rank",
    "random_confidence",
    "singleton_share",
    "uniformity",
]

MAX_CENTROIDS = 4096  # pairs are compared among this many rows
MAX_UNIFORMITY_ROWS = 1024
BOUND_MARGIN = 0.05  # of the range of tau2


class CentroidSimilarity(NamedTuple):
    """How alike the class references are; 0-dim tensors."""

    mean: Tensor
    max: Tensor
    effective_rank: Tensor


def effective_rank(vectors: Tensor) -> Tensor:
    """Exponential of the entropy of the normalised singular values of (C, D) vectors.

    NaN where a value is not finite.
    In [1, min(C, D)]. Healthy: centroids near min(C - 1, D), where a simplex is; 1 is
    complete collapse. Source: Roy and Vetterli, "The effective rank", 2007.
    """
    short = vectors if len(vectors) <= vectors.shape[1] else vectors.T
    gram = precise(short) @ precise(short).T
    if not gram.isfinite().all():  # on which eigvalsh raises
        return gram.new_full((), torch.nan)
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    shares = values / values.sum()
    entropy: Tensor = torch.special.entr(shares).sum()
    return entropy.exp()


def centroid_similarity(centroids: Tensor) -> CentroidSimilarity:
    """Cosine similarity between the classes, of unit rows (C, D).

    Cosines are in [-1, 1]. Healthy: the mean falls to about -1 / (C - 1), the simplex
    that the objective aims at, and the maximum stays clear of 1, at which two classes
    are one. A mean near 1 is collapse; at the very start it is normal, since random
    networks map everything to nearly one direction. Both are 0 for a single class.
    Of more than 4,096 classes, so many are compared for the maximum and the rank.
    """
    num = len(centroids)
    if num < 2:
        zero = centroids.new_zeros(())
        return CentroidSimilarity(zero, zero, zero + num)
    total = centroids.sum(dim=0)
    mean = (total @ total - num) / (num * (num - 1))
    rows = _some(centroids, MAX_CENTROIDS)
    cosines = (rows @ rows.T).fill_diagonal_(-1)
    return CentroidSimilarity(mean, cosines.max(), effective_rank(rows))


def dispersion(sums: Tensor, counts: Tensor) -> Tensor:
    """Mean 1 - cosine of a sample with its class mean, over classes of two or more.

    In [0, 1]. Healthy: falls while the centroids stay apart; 0 beside collapsed
    centroids means that everything is one point. 0 if no class has two samples.
    Source: 1 - R of directional statistics (Mardia and Jupp, 2000).
    """
    several = counts > 1
    lengths: Tensor = torch.linalg.vector_norm(sums, dim=1)
    spread = (counts - lengths)[several].sum()
    return spread / counts[several].sum().clamp(min=1)


def alignment(sums: Tensor, counts: Tensor) -> Tensor:
    """Mean squared distance between two samples of a class, over all such pairs.

    In [0, 4]. Healthy: falls; 2 is what random embeddings show. NaN without a pair.
    Source: Wang and Isola, arXiv 2005.10242, alpha = 2, with classmates as positives.
    """
    pairs = (counts * (counts - 1)).sum()
    cosines = ((sums * sums).sum(dim=1) - counts).sum()
    return 2 - 2 * cosines / pairs.masked_fill(pairs == 0, torch.nan)


def uniformity(embeddings: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Log of the mean of exp(-2 |x - y|^2) over pairs of embeddings (N, D), unit rows.

    In [-8, 0]. Healthy: falls from about 0, a single point, towards the floor of C
    compact classes far apart, ln(1 / C + exp(-4)); about -4 is random spread, classes
    or not. Pairs are taken within ranks, of at most 1,024 rows each. NaN without a
    pair.
    Source: Wang and Isola, arXiv 2005.10242, t = 2.
    """
    rows = _some(embeddings, MAX_UNIFORMITY_ROWS)
    num = len(rows)
    potential = precise((4 * (rows @ rows.T) - 4).exp().fill_diagonal_(0).sum())
    sums = torch.stack((potential, potential.new_tensor(num * (num - 1))))
    total, pairs = sum_across_ranks(sums, group).unbind()
    return (total / pairs).log()


def bound_shares(
    tau2: Tensor, temperature: float, epsilon: float, margin: float = BOUND_MARGIN
) -> tuple[Tensor, Tensor]:
    """Share of the samples whose tau2 is at its lower and at its upper bound.

    In [0, 1]; at a bound means within ``margin`` of the range [temperature - epsilon,
    temperature + epsilon], which is confidence below ``margin`` or above 1 - margin.
    Healthy: the mass moves from the lower to the upper bound over the whole schedule;
    all at one of them early leaves nothing to adapt. 0 and 0 with epsilon 0.
    Source: Eq. 13; the margin is ours.
    """
    reach = (1 - 2 * margin) * epsilon
    if epsilon == 0:
        zero = tau2.new_zeros(())
        return zero, zero
    low = (tau2 <= temperature - reach).to(tau2).mean()
    return low, (tau2 >= temperature + reach).to(tau2).mean()


def random_confidence(
    counts: Tensor,
    dim: int,
    temperature: float,
    *,
    self_included: bool = True,
    samples: int = 512,
    seed: int = 0,
) -> Tensor:
    """Mean confidence of random embeddings with the class counts of this batch.

    In [0, 1]. A sample sits in its own class mean, so that few samples a class make
    confidence high without anything learned. Healthy: the confidence of the run ends
    well above it (it starts below, near 1 / C, since early embeddings are less spread
    than random ones); above .5 the objective tells images apart more than classes.
    Views of an image count as independent here; correlated ones show more.

    Monte Carlo over ``samples`` samples, standard error at most .5 / sqrt(samples),
    with a generator of its own: the random state of the run is not touched.
    Source: ours.

    Args:
        counts: (C,), samples of each class in the global batch; 0 is absent.
        dim: of the embeddings.
        temperature: tau_1.
        self_included: False for references that the sample is no part of.
        samples: drawn; more is more exact.
        seed: of the generator.
    """
    present = counts[counts > 0]
    weights = present if self_included else present * (present > 1)
    if len(present) < 2 or not bool(weights.any()):
        return counts.new_ones(())
    generator = torch.Generator(counts.device).manual_seed(seed)

    def directions(rows: int) -> Tensor:
        return torch.randn(
            rows, dim, generator=generator, device=counts.device, dtype=counts.dtype
        )

    targets = torch.multinomial(weights, samples, True, generator=generator)
    embeddings = normalize(directions(samples))
    # n - 1 random unit vectors add up to about a Gaussian of variance (n - 1) / dim
    reference = directions(samples) * ((present[targets, None] - 1) / dim).sqrt()
    if self_included:
        reference = reference + embeddings
    true = (embeddings * normalize(reference)).sum(dim=1, keepdim=True)
    drawn = min(len(present) - 1, MAX_CENTROIDS)  # stand for all the other classes
    others = (embeddings @ normalize(directions(drawn)).T / temperature).logsumexp(
        dim=1, keepdim=True
    ) + math.log((len(present) - 1) / drawn)
    return torch.sigmoid(true / temperature - others).mean()


def singleton_share(counts: Tensor, views: int = 1) -> Tensor:
    """Share of the images of the global batch that are alone in their class.

    In [0, 1]. Healthy: small; such an image meets only its own views, and its class
    reference is itself. ``counts`` (C,) are of embeddings, ``views`` of them an image.
    Source: ours.
    """
    alone = counts[counts <= views].sum()
    return alone / counts.sum().clamp(min=1)


def classes_in_batch(counts: Tensor) -> Tensor:
    """Classes in the global batch, from ``counts`` (C,).

    At least 1, at which loss and gradient are 0. Healthy: most of the data set's, with
    several images each. Source: the paper's r' runs over these.
    """
    return (counts > 0).sum()


def chance_level(num_classes: int, temperature: float, epsilon: float) -> float:
    """The loss of a posterior that is uniform over ``num_classes``.

    About 2 ln C: ln C of the likelihood, and a little less of the divergence, since the
    target is not quite one-hot. Healthy: the loss starts below (a sample sits in its
    own class mean) and falls; staying there is collapse or nothing learned. 0 for one
    class. Source: Eq. 7 at p = 1 / C.
    """
    if num_classes < 2:
        return 0.0
    num = torch.tensor(float(num_classes), dtype=torch.float64)
    _, q, rest, log_q, log_q_other = target_distribution(
        1 / num, num - 1, temperature, epsilon
    )
    negative_entropy = q * log_q + rest * log_q_other
    return float(2 * num.log() + negative_entropy)


def precise(tensor: Tensor) -> Tensor:
    """In float64, where the device has it."""
    return tensor if tensor.device.type == "mps" else tensor.double()


def _some(rows: Tensor, limit: int) -> Tensor:
    """All rows, or ``limit`` of them, the same at every call."""
    if len(rows) <= limit:
        return rows
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(rows), generator=generator)[:limit]
    return rows[chosen.to(rows.device)]
