"""What is observed, measured over ranks, kept in files, and warned of."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from varcon_plugin import VarConLoss
from varcon_plugin.health.measures import chance_level, random_confidence
from varcon_plugin.health.monitor import DiagnosticsMonitor, find_loss, measure
from varcon_plugin.momentum import MomentumCentroids

LABELS = torch.tensor([0, 0, 1, 2, 2, 2, 3, 1, 0, 2, 4, 0])
SIZES = (5, 7)  # of two ranks; rank 0 lacks classes 3 and 4


def embeddings_of(labels, dim=8):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(len(labels), dim, generator=generator, dtype=torch.float64)


def observe(loss, embeddings, labels):
    """What an observer of ``loss`` sees."""
    seen = []
    handle = loss.register_observer(seen.append)
    loss(embeddings, labels)
    handle.remove()
    (observation,) = seen
    return observation


def step(monitor, step, epoch=1, labels=LABELS, progress=None):
    monitor.begin_step(step, epoch)
    monitor.loss(embeddings_of(labels), labels)
    return monitor.end_step(progress)


def test_an_observer_sees_the_terms_and_changes_nothing():
    loss = VarConLoss()
    embeddings = embeddings_of(LABELS).requires_grad_()
    alone = loss(embeddings, LABELS)
    observation = observe(loss, embeddings, LABELS)
    assert torch.equal(observation.terms.loss, alone)
    assert not observation.embeddings.requires_grad
    norms = torch.linalg.vector_norm(observation.embeddings, dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))
    assert torch.equal(observation.labels, LABELS)
    assert observation.references.centroids.shape == (5, 8)


def test_a_removed_observer_is_not_called_and_never_in_the_checkpoint():
    loss, seen = VarConLoss(), []
    handle = loss.register_observer(seen.append)
    assert not loss.state_dict()
    loss(embeddings_of(LABELS), LABELS)
    handle.remove()
    loss(embeddings_of(LABELS), LABELS)
    assert len(seen) == 1


def test_observed_loss_compiles():
    loss, seen = VarConLoss(num_classes=5), []
    compiled = torch.compile(loss, backend="eager")
    embeddings = embeddings_of(LABELS)
    unseen = compiled(embeddings, LABELS)
    handle = loss.register_observer(seen.append)
    torch.testing.assert_close(compiled(embeddings, LABELS), unseen)
    assert len(seen) == 1
    handle.remove()


def test_measure_agrees_with_the_terms_of_the_loss():
    loss = VarConLoss(num_classes=9)
    observation = observe(loss, embeddings_of(LABELS), LABELS)
    values = measure(observation, loss, views=1)
    terms = observation.terms
    assert values["loss"] == pytest.approx(terms.loss.item())
    for name in ("kl", "nll", "confidence"):
        assert values[name] == pytest.approx(getattr(terms, name).mean().item())
    assert values["tau2_mean"] == pytest.approx(terms.tau2.mean().item())
    assert values["tau2_std"] == pytest.approx(terms.tau2.std(correction=0).item())
    assert values["classes"] == values["references"] == 5  # of nine
    assert values["singleton_share"] == pytest.approx(2 / 12)
    assert all(math.isfinite(value) for value in values.values())


def test_samples_without_a_reference_are_left_out():
    loss = VarConLoss(leave_one_out=True)
    observation = observe(loss, embeddings_of(LABELS), LABELS)
    values = measure(observation, loss, views=1)
    counted = torch.bincount(LABELS)[LABELS] > 1
    confidence = observation.terms.confidence[counted].mean()
    assert values["confidence"] == pytest.approx(confidence.item())
    assert values["loss"] == pytest.approx(observation.terms.loss.item())
    counts = torch.bincount(LABELS).double()
    expected = random_confidence(counts, 8, 0.1, self_included=False)
    assert values["random_confidence"] == expected.item()


def test_every_measure_exists_where_no_sample_has_a_classmate():
    labels = torch.arange(6)
    loss = VarConLoss(leave_one_out=True)
    with pytest.warns(UserWarning, match="no sample of the batch has a classmate"):
        observation = observe(loss, embeddings_of(labels), labels)
    values = measure(observation, loss, views=1)
    assert values["singleton_share"] == 1
    assert values["loss"] == 0
    assert math.isnan(values["alignment"])


@pytest.mark.parametrize("num_negatives", [None, 40])
def test_a_bank_is_measured_over_the_classes_it_holds(tmp_path, num_negatives):
    generator = torch.Generator().manual_seed(0)
    bank = MomentumCentroids(20, 8, num_negatives=num_negatives)
    loss = VarConLoss(centroids=bank)
    labels = torch.arange(20)
    loss(torch.randn(20, 8, generator=generator), labels)  # fills it
    monitor = DiagnosticsMonitor(loss, tmp_path, interval=1, histogram_epochs=1)
    report = step(monitor, 1)
    values = report.scalars
    monitor.end_epoch(1)
    assert values["classes"] == 5
    assert values["centroid_cosine_max"] < 0.99  # no class is drawn twice
    assert report.warning is None
    if num_negatives is None:
        assert values["references"] == 20
        assert values["chance_level"] == chance_level(20, 0.1, 0.02)
    else:
        assert values["references"] == pytest.approx(20, abs=6)  # an estimate
    unrelated = random_confidence(torch.full((20,), 2.0), 8, 0.1, self_included=False)
    assert values["random_confidence"] == pytest.approx(unrelated.item(), abs=0.1)
    with np.load(tmp_path / "epoch_0001.npz") as content:
        assert set(content["classes"]) - {-1} == {0, 1, 2, 3, 4}


def test_singletons_are_no_sign_with_a_bank():
    loss = VarConLoss(centroids=MomentumCentroids(12, 8))
    monitor = DiagnosticsMonitor(loss, None, interval=1, views=1, patience=1)
    reports = [step(monitor, i, labels=torch.arange(12)) for i in range(1, 4)]
    assert reports[-1].scalars["singleton_share"] == 1
    assert "no_classmates" not in [r.warning and r.warning.name for r in reports]


def _measure_on_rank(rank, folder):
    mine = torch.arange(len(LABELS)).split(SIZES)[rank]
    loss = VarConLoss(leave_one_out=True, num_classes=6)
    monitor = DiagnosticsMonitor(
        loss, folder if rank == 0 else None, interval=1, histogram_epochs=1, views=1
    )
    monitor.begin_step(1, epoch=1)
    loss(embeddings_of(LABELS)[mine], LABELS[mine])
    scalars = monitor.end_step(progress=0.5).scalars
    monitor.end_epoch(1)
    return scalars


def test_ranks_measure_and_store_the_global_batch(run_ranks, tmp_path):
    first, second = run_ranks(_measure_on_rank, 2, tmp_path)
    assert first == second
    loss = VarConLoss(leave_one_out=True, num_classes=6)
    observation = observe(loss, embeddings_of(LABELS), LABELS)
    alone = measure(observation, loss, views=1)
    del first["uniformity"], alone["uniformity"]  # pairs within ranks only
    assert first == pytest.approx(alone, rel=1e-9)

    content = np.load(tmp_path / "epoch_0001.npz")
    assert content["counts"].sum() == 10  # two of the twelve are alone
    assert len((tmp_path / "scalars.jsonl").read_text().splitlines()) == 1


def test_only_every_interval_th_step_is_observed(tmp_path):
    monitor = DiagnosticsMonitor(VarConLoss(), tmp_path, interval=3)
    measured = [i for i in range(1, 10) if step(monitor, i).scalars is not None]
    assert measured == [3, 6, 9]
    lines = (tmp_path / "scalars.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == measured
    assert not monitor.loss._observers


def test_several_batches_of_one_step_are_measured_once():
    monitor = DiagnosticsMonitor(VarConLoss(), None, interval=2)
    reports = [step(monitor, i).scalars for i in (1, 1, 2, 2, 3, 3)]
    assert [report is not None for report in reports] == [0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize(("chosen", "stored"), [((2, 5), [2]), (2, [2, 4]), ((), [])])
def test_histograms_of_chosen_epochs_hold_every_sample(tmp_path, chosen, stored):
    monitor = DiagnosticsMonitor(VarConLoss(), tmp_path, histogram_epochs=chosen)
    confidence = observe(monitor.loss, embeddings_of(LABELS), LABELS).terms.confidence
    for epoch in range(1, 5):
        for i in range(3):
            step(monitor, 3 * epoch + i, epoch)
        monitor.end_epoch(epoch)
    assert sorted(path.name for path in tmp_path.glob("*.npz")) == [
        f"epoch_{epoch:04d}.npz" for epoch in stored
    ]
    for path in tmp_path.glob("*.npz"):
        content = np.load(path)
        expected, _ = np.histogram(confidence, bins=100, range=(0, 1))
        np.testing.assert_array_equal(content["counts"], 3 * expected)
        np.testing.assert_allclose(content["confidence_mean"], confidence.mean())
        tau2 = 0.08 + 0.04 * confidence
        np.testing.assert_allclose(content["tau2_mean"], tau2.mean())
        np.testing.assert_allclose(content["tau2_std"], tau2.std(correction=0))
        np.testing.assert_allclose(content["tau2_edges"][[0, -1]], [0.08, 0.12])


def test_stored_references_carry_their_labels(tmp_path):
    labels = torch.tensor([70, 30, 70, 50, 50, 30])
    monitor = DiagnosticsMonitor(VarConLoss(), tmp_path, histogram_epochs=1)
    step(monitor, 1, labels=labels)
    step(monitor, 2, labels=labels[:3])  # an incomplete last batch is passed over
    monitor.end_epoch(1)
    content = np.load(tmp_path / "epoch_0001.npz")
    assert content["classes"].tolist() == [30, 50, 70]
    norms = np.linalg.norm(content["centroids"].astype(float), axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-3)


def test_stored_references_are_those_present(tmp_path):
    loss = VarConLoss(num_classes=9)
    monitor = DiagnosticsMonitor(loss, tmp_path, histogram_epochs=1)
    step(monitor, 1)
    monitor.end_epoch(1)
    content = np.load(tmp_path / "epoch_0001.npz")
    assert content["classes"].tolist() == [0, 1, 2, 3, 4]


def test_a_warning_survives_a_resume():
    labels = torch.arange(12)
    first = DiagnosticsMonitor(VarConLoss(), None, interval=1, views=1, patience=2)
    told = [step(first, i, labels=labels).warning for i in (1, 2, 3)]
    assert [sign and sign.name for sign in told] == [None, "no_classmates", None]
    second = DiagnosticsMonitor(VarConLoss(), None, interval=1, views=1, patience=2)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [step(second, i, labels=labels).warning for i in (4, 5, 6)] == [None] * 3


@pytest.mark.parametrize("views", [1, 3])
def test_views_are_counted_from_the_images(views):
    monitor = DiagnosticsMonitor(VarConLoss(), None, interval=1)
    labels = torch.arange(6).repeat(views)
    monitor.begin_step(1, 1, images=6)
    monitor.loss(embeddings_of(labels), labels)
    scalars, _ = monitor.end_step()
    assert monitor.views == views
    assert scalars["singleton_share"] == 1


def test_class_names_are_stored_beside_their_references(tmp_path):
    loss, names = VarConLoss(), ["ant", "bee", "cat", "dog"]
    monitor = DiagnosticsMonitor(
        loss, tmp_path, interval=1, histogram_epochs=1, views=1, classes=names
    )
    step(monitor, 1)
    monitor.end_epoch(1)
    with np.load(tmp_path / "epoch_0001.npz") as stored:
        assert stored["classes"].tolist() == [0, 1, 2, 3, 4]
        assert stored["names"].tolist() == [*names, "?"]


@pytest.mark.parametrize("name", ["interval", "views", "patience"])
def test_arguments_below_one_are_named(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        DiagnosticsMonitor(VarConLoss(), None, **{name: 0})


@pytest.mark.parametrize("epochs", [0, (10, 0)])
def test_epochs_count_from_one(epochs):
    with pytest.raises(ValueError, match="histogram_epochs must be at least 1, got 0"):
        DiagnosticsMonitor(VarConLoss(), None, histogram_epochs=epochs)


def test_the_loss_is_found_inside_a_model():
    loss = VarConLoss()
    assert find_loss(nn.Sequential(nn.Linear(2, 2), nn.Sequential(loss))) is loss


@pytest.mark.parametrize("losses", [0, 2])
def test_a_model_without_one_loss_is_an_error(losses):
    with pytest.raises(ValueError, match=f"exactly one VarConLoss.*found {losses}"):
        find_loss(nn.Sequential(*(VarConLoss() for _ in range(losses))))


@pytest.mark.parametrize("bank", [False, True])
def test_a_batch_that_is_not_finite_is_a_sign_and_no_crash(tmp_path, bank):
    source = {"centroids": MomentumCentroids(5, 8)} if bank else {}
    monitor = DiagnosticsMonitor(
        VarConLoss(**source), tmp_path, interval=1, patience=2, histogram_epochs=1
    )
    told = []
    for number in range(1, 5):
        embeddings = embeddings_of(LABELS)
        if number > 1:
            embeddings[3, 2] = math.inf
        monitor.begin_step(number, 1)
        monitor.loss(embeddings, LABELS)
        told.append(monitor.end_step(0.01).warning)
    assert [sign and sign.name for sign in told] == [None, None, "not_finite", None]
    monitor.end_epoch(1)
    with np.load(tmp_path / "epoch_0001.npz") as stored:
        assert math.isfinite(stored["confidence_mean"])
        assert stored["counts"].sum() >= len(LABELS)


def test_a_resumed_run_leaves_out_a_line_that_was_cut(tmp_path):
    monitor = DiagnosticsMonitor(VarConLoss(), tmp_path, interval=1)
    for i in (1, 2, 3):
        step(monitor, i)
    scalars = tmp_path / "scalars.jsonl"
    scalars.write_text(scalars.read_text()[:-20])
    monitor.begin_run(3)
    step(monitor, 4)
    lines = scalars.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 4]
    assert [path.name for path in tmp_path.iterdir()] == ["scalars.jsonl"]
