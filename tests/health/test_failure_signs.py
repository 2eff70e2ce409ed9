"""Each failure, provoked by a small run or a constructed batch, is told, and no other.

The runs train a small network on scikit-learn's digits or on generated images.
"""

import pytest
import torch
from torch import nn

from varcon_plugin import VarConLoss
from varcon_plugin.health.failure_signs import FailureSigns, failure_sign
from varcon_plugin.health.monitor import DiagnosticsMonitor
from varcon_plugin.training.digits import load_digits_split

BATCH, STEPS = 128, 60


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits_split("train")
    return torch.tensor(images).flatten(1) / 255, torch.tensor(labels)


@pytest.fixture(scope="module")
def blobs():
    """64 classes, each a point with noise around it."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64).repeat(20)
    means = torch.randn(64, 64, generator=generator)
    noise = torch.randn(len(labels), 64, generator=generator)
    return means[labels] + 0.3 * noise, labels


def train(images, labels, *, lr=0.1, schedule=STEPS, batch=BATCH, loss=None):
    """The warnings of a run of `STEPS` steps, of a schedule of ``schedule`` steps."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(images.shape[1], 128), nn.ReLU(), nn.Linear(128, 32)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    loss = loss or VarConLoss()
    monitor = DiagnosticsMonitor(loss, None, interval=1, patience=3)
    told = []
    for step in range(1, STEPS + 1):
        chosen = torch.randint(len(images), (batch,))
        views = images[chosen].repeat(2, 1)
        monitor.begin_step(step, epoch=1)
        value = loss(
            model(views + 0.1 * torch.randn_like(views)), labels[chosen].repeat(2)
        )
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        report = monitor.end_step(step / schedule)
        if report.warning is not None:
            told.append(report.warning)
    return told


def names(told):
    return [sign.name for sign in told]


def test_a_healthy_run_is_silent(digits):
    assert train(*digits) == []


def test_a_high_learning_rate_collapses_the_centroids(digits):
    (sign,) = train(*digits, lr=100)
    assert sign.name == "collapse"
    assert sign.message.startswith("centroids are collapsing: max cosine 1.0")
    assert "lower learning rate" in sign.message


def test_one_class_in_every_batch(digits):
    images, labels = digits
    with pytest.warns(UserWarning, match="single class"):  # the loss says so too
        told = train(images, torch.zeros_like(labels))
    assert names(told) == ["one_class"]


def test_images_without_classmates(digits):
    images, _ = digits
    (sign,) = train(images, torch.arange(len(images)))
    assert sign.name == "no_classmates"
    assert sign.message.startswith("88% of the images have no classmate")


def test_labels_that_do_not_belong_to_their_images(digits):
    images, labels = digits
    torch.manual_seed(0)
    shuffled = labels[torch.randperm(len(labels))]
    told = train(images, shuffled, loss=VarConLoss(leave_one_out=True))
    assert names(told) == ["not_learning"]


def test_a_temperature_too_high_for_the_classes(blobs):
    (sign,) = train(*blobs, loss=VarConLoss(1.0, 0.2))
    assert sign.name == "tau2_stuck"
    assert "lower bound 0.8 for 100% of the samples" in sign.message


def test_a_temperature_too_low_for_the_geometry(blobs):
    images, labels = blobs
    (sign,) = train(images + 10, labels, lr=1e-4, loss=VarConLoss(0.005, 0.001))
    assert sign.name == "tau2_stuck"
    assert "upper bound 0.006" in sign.message


def test_labels_that_leak_into_the_images(digits):
    images, labels = digits
    leaking = torch.cat((images, 3 * torch.eye(10)[labels]), dim=1)
    told = train(leaking, labels, schedule=100 * STEPS)
    assert names(told) == ["early_confidence"]


HEALTHY = {
    "loss": 1.0, "kl": 0.5, "nll": 0.5, "confidence": 0.6, "random_confidence": 0.3,
    "tau2_low_share": 0.1, "tau2_high_share": 0.2, "centroid_cosine_mean": 0.1,
    "centroid_cosine_max": 0.6, "centroid_effective_rank": 8.0, "dispersion": 0.1,
    "alignment": 0.4, "singleton_share": 0.1, "classes": 10.0, "references": 10.0,
    "chance_level": 4.6,
}  # fmt: skip
COLLAPSED = {"loss": 4.59, "centroid_cosine_mean": 0.999, "dispersion": 0.001}
CERTAIN = {"confidence": 0.99}


def sign_of(changes, *, epsilon=0.02, **options):
    values = {**HEALTHY, **changes}
    return failure_sign(values, temperature=0.1, epsilon=epsilon, **options)


def name_of(changes, **options):
    sign = sign_of(changes, **options)
    return sign and sign.name


def test_an_unchanged_run_shows_no_sign():
    assert name_of({}, progress=0.01) is None
    assert name_of({}) is None


@pytest.mark.parametrize("changes", [COLLAPSED, {"loss": 4.5}, {"tau2_low_share": 1.0}])
def test_what_is_normal_at_the_start_is_a_sign_from_five_percent_on(changes):
    assert name_of(changes, progress=0.049) is None
    assert name_of(changes, progress=0.05) is not None
    assert name_of(changes, progress=None) is not None


@pytest.mark.parametrize(
    ("progress", "name"), [(0.09, "early_confidence"), (0.1, None)]
)
def test_certainty_is_a_sign_in_the_first_tenth(progress, name):
    assert name_of(CERTAIN, progress=progress) == name
    assert name_of(CERTAIN, progress=None) is None


def test_the_cause_is_told_before_its_consequences():
    everything = {**COLLAPSED, "tau2_low_share": 1.0}
    assert name_of(everything) == "collapse"
    assert name_of({**everything, "singleton_share": 0.9}) == "no_classmates"
    assert name_of({**everything, "dispersion": 0.3}) == "not_learning"


def test_identical_centroids_are_no_collapse_where_the_loss_falls():
    """At a low temperature small angles tell classes apart."""
    assert name_of({**COLLAPSED, "loss": 0.7}) is None


def test_converged_samples_at_the_upper_bound_are_healthy():
    converged = {"tau2_high_share": 1.0, "alignment": 0.1}
    assert name_of(converged) is None
    assert name_of({**converged, "centroid_cosine_mean": 0.9}) == "tau2_stuck"
    assert name_of({**converged, "alignment": float("nan")}) is None


@pytest.mark.parametrize("side", ["low", "high"])
def test_a_fixed_tau2_is_not_stuck(side):
    changes = {f"tau2_{side}_share": 1.0, "alignment": 1.9}
    assert name_of(changes) == "tau2_stuck"
    assert name_of(changes, epsilon=0) is None


def test_references_from_elsewhere_need_no_classmates():
    assert name_of({"singleton_share": 1.0}) == "no_classmates"
    assert name_of({"singleton_share": 1.0}, batch_references=False) is None


def test_a_sign_is_told_once_and_only_if_it_lasts():
    signs = FailureSigns(patience=3)
    sign, other = sign_of(COLLAPSED), sign_of({"loss": 4.5})
    shown = [sign, sign, None, sign, sign, other, sign, sign, sign, sign, sign]
    told = [signs.news(seen) for seen in shown]
    assert told == [None] * 8 + [sign, None, None]


def test_signs_go_on_from_their_state():
    sign, other = sign_of(COLLAPSED), sign_of({"loss": 4.5})
    first = FailureSigns(patience=2)
    assert [first.news(x) for x in (sign, sign, other)] == [None, sign, None]
    second = FailureSigns(patience=2)
    second.load_state_dict(first.state_dict())
    assert second.news(other) == other
    assert [second.news(sign) for _ in range(3)] == [None] * 3
