"""The measures, against loops, closed forms and simulation."""

import itertools
import math

import pytest
import torch

from varcon_plugin import VarConLoss
from varcon_plugin.functional import class_sums, normalize
from varcon_plugin.health.measures import (
    alignment,
    bound_shares,
    centroid_similarity,
    chance_level,
    classes_in_batch,
    dispersion,
    effective_rank,
    random_confidence,
    singleton_share,
    uniformity,
)

LABELS = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 3, 3])
TEMPERATURE, EPSILON = 0.1, 0.02


@pytest.fixture
def embeddings():
    torch.manual_seed(0)
    return normalize(torch.randn(len(LABELS), 6, dtype=torch.float64))


@pytest.fixture
def table(embeddings):
    return class_sums(embeddings, LABELS, 4)


def simplex(num):
    return normalize(torch.eye(num, dtype=torch.float64) - 1 / num)


def pairs_of_classmates(embeddings):
    for i, j in itertools.combinations(range(len(LABELS)), 2):
        if LABELS[i] == LABELS[j]:
            yield embeddings[i], embeddings[j]


@pytest.mark.parametrize(
    ("vectors", "rank"),
    [
        (torch.ones(5, 3), 1.0),
        (torch.eye(7)[:4], 4.0),
        (torch.eye(4).repeat(3, 1), 4.0),
        (simplex(6), 5.0),
    ],
)
def test_effective_rank_counts_equal_directions(vectors, rank):
    assert effective_rank(vectors).item() == pytest.approx(rank, abs=1e-5)


def test_effective_rank_is_the_exponential_of_the_entropy(embeddings):
    values = torch.linalg.svdvals(embeddings)
    shares = values / values.sum()
    expected = math.exp(-sum(s * math.log(s) for s in shares.tolist()))
    assert effective_rank(embeddings).item() == pytest.approx(expected, rel=1e-6)


def test_centroid_similarity_is_over_all_pairs(embeddings):
    cosines = [float(a @ b) for a, b in itertools.combinations(embeddings, 2)]
    similarity = centroid_similarity(embeddings)
    assert similarity.mean.item() == pytest.approx(sum(cosines) / len(cosines))
    assert similarity.max.item() == pytest.approx(max(cosines))


def test_a_simplex_and_a_single_class_have_the_documented_similarity():
    num = 8
    apart = centroid_similarity(simplex(num))
    assert apart.mean.item() == pytest.approx(-1 / (num - 1))
    assert apart.max.item() == pytest.approx(-1 / (num - 1))
    assert [x.item() for x in centroid_similarity(torch.eye(3)[:1])] == [0, 0, 1]


def test_of_many_classes_some_are_compared(monkeypatch):
    monkeypatch.setattr("varcon_plugin.health.measures.MAX_CENTROIDS", 4)
    assert centroid_similarity(torch.eye(8)).effective_rank.item() == pytest.approx(4)
    assert centroid_similarity(torch.ones(8, 1)).max.item() == 1


def test_dispersion_is_the_mean_angle_to_the_class_mean(embeddings, table):
    centroids = normalize(table[0])
    cosines = [
        float(z @ centroids[r])
        for z, r in zip(embeddings, LABELS, strict=True)
        if r != 2  # alone in its class
    ]
    expected = 1 - sum(cosines) / len(cosines)
    assert dispersion(*table).item() == pytest.approx(expected)


def test_dispersion_is_zero_where_every_class_is_one_point():
    points = torch.eye(4)[LABELS]
    assert dispersion(*class_sums(points, LABELS, 4)).item() == 0
    assert dispersion(torch.eye(3), torch.ones(3)).item() == 0


def test_alignment_is_the_mean_squared_distance_of_classmates(embeddings, table):
    distances = [float((a - b) @ (a - b)) for a, b in pairs_of_classmates(embeddings)]
    expected = sum(distances) / len(distances)
    assert alignment(*table).item() == pytest.approx(expected)


def test_alignment_without_a_pair_is_not_a_number():
    assert alignment(torch.eye(3), torch.ones(3)).isnan()


def test_uniformity_is_the_log_of_the_mean_potential(embeddings):
    potentials = [
        math.exp(-2 * float((a - b) @ (a - b)))
        for a, b in itertools.combinations(embeddings, 2)
    ]
    expected = math.log(sum(potentials) / len(potentials))
    assert uniformity(embeddings).item() == pytest.approx(expected)


def test_uniformity_of_a_point_of_noise_and_of_a_simplex():
    assert uniformity(torch.eye(3)[:1].repeat(9, 1)).item() == pytest.approx(0)
    torch.manual_seed(0)
    noise = normalize(torch.randn(2000, 512))  # more rows than are compared
    assert uniformity(noise).item() == pytest.approx(-4, abs=0.05)
    num = 100
    compact = simplex(num).repeat(50, 1)
    floor = math.log(1 / num + math.exp(-4))
    assert uniformity(compact).item() == pytest.approx(floor, abs=0.06)


def test_bound_shares_are_of_confidence_within_five_percent():
    confidence = torch.tensor([0.0, 0.049, 0.051, 0.5, 0.949, 0.951, 0.99, 1.0])
    tau2 = TEMPERATURE - EPSILON + 2 * EPSILON * confidence
    low, high = bound_shares(tau2, TEMPERATURE, EPSILON)
    assert (low.item(), high.item()) == (2 / 8, 3 / 8)


def test_bound_shares_without_a_range_are_zero():
    low, high = bound_shares(torch.full((3,), 0.1), TEMPERATURE, epsilon=0)
    assert (low.item(), high.item()) == (0, 0)


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize(("num_classes", "images"), [(10, 128), (200, 128)])
def test_random_confidence_is_what_the_loss_shows(num_classes, images, leave_one_out):
    torch.manual_seed(0)
    criterion = VarConLoss(leave_one_out=leave_one_out)
    labels = torch.randint(num_classes, (images,)).repeat(2)
    seen = torch.stack(
        [
            criterion.forward_components(torch.randn(len(labels), 64), labels)
            .confidence.mean()
            .double()
            for _ in range(20)
        ]
    ).mean()
    counts = torch.bincount(labels).double()
    expected = random_confidence(
        counts, 64, 0.1, self_included=not leave_one_out, samples=4096
    )
    assert expected.item() == pytest.approx(seen.item(), abs=0.03)


def test_random_confidence_falls_with_classmates_and_repeats_exactly():
    few, many = torch.full((50,), 2.0), torch.full((50,), 40.0)
    assert random_confidence(few, 64, 0.1) > 2 * random_confidence(many, 64, 0.1)
    before = torch.get_rng_state()
    assert random_confidence(few, 64, 0.1) == random_confidence(few, 64, 0.1)
    assert torch.equal(torch.get_rng_state(), before)


def test_random_confidence_of_one_class_is_certain():
    assert random_confidence(torch.tensor([0.0, 9.0]), 8, 0.1).item() == 1


def test_singletons_are_counted_by_images():
    counts = torch.tensor([2.0, 0.0, 4.0, 2.0, 6.0])
    assert singleton_share(counts, views=2).item() == pytest.approx(4 / 14)
    assert singleton_share(counts).item() == 0
    assert classes_in_batch(counts).item() == 4


@pytest.mark.parametrize(
    ("num_classes", "level"), [(10, 4.60), (100, 9.21), (871, 13.50), (1, 0.0)]
)
def test_chance_level_is_near_two_log_c(num_classes, level):
    assert chance_level(num_classes, 0.1, 0.02) == pytest.approx(level, abs=0.01)


@pytest.mark.parametrize(("temperature", "epsilon"), [(0.1, 0.02), (0.5, 0.3), (1, 0)])
def test_chance_level_is_the_loss_of_collapsed_embeddings(temperature, epsilon):
    criterion = VarConLoss(temperature, epsilon)
    loss = criterion(torch.ones(40, 8, dtype=torch.float64), torch.arange(40) % 20)
    expected = chance_level(20, temperature, epsilon)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
