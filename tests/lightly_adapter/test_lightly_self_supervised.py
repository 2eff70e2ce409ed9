"""`VarConSSL`: no label reaches the model, latent classes are checked and watched."""

import pytest
import torch

import varcon_plugin
from varcon_plugin.lightly import VarConSSL


@pytest.fixture
def ssl():
    """``ssl(**arguments)``: a small VarConSSL, the same every time."""

    def build(**kwargs):
        torch.manual_seed(0)
        arguments = {"backbone": "test_resnet", "knn_k": 5, "warmup_epochs": 1}
        return VarConSSL(16, 4, **{**arguments, **kwargs})

    return build


def weights(model):
    parts = (model.backbone, model.projection_head, model.criterion)
    return [value for part in parts for value in part.state_dict().values()]


@pytest.mark.parametrize(
    "options", [{}, {"latent_classes": 8}, {"latent_classes": 8, "teacher_momentum": 0}]
)
def test_shuffled_labels_give_the_same_model(ssl, loader, fit, options):
    trained = []
    for shift in (0, 1):
        model, batches = ssl(**options), loader(images=48)
        data = batches.dataset
        data.targets = [(t + shift * i) % 4 for i, t in enumerate(data.targets)]
        fit(model, batches)
        trained.append(model)
    for one, two in zip(*map(weights, trained), strict=True):
        assert not isinstance(one, torch.Tensor) or torch.equal(one, two)
    first, second = (m.online_classifier.state_dict() for m in trained)
    assert not all(torch.equal(first[k], second[k]) for k in first)  # it does read them


def test_the_loss_is_the_core_s(ssl, loader, fit):
    model = ssl(lr=0.0, temperature=0.2, epsilon=0.1)
    batches = loader(images=16)
    trainer = fit(model, batches, max_epochs=1)
    views = next(iter(batches))[0]
    z = model.projection_head(model.backbone(torch.cat(views)))
    core = varcon_plugin.SelfSupervisedVarConLoss(0.2, 0.1)
    expected = core(*z.chunk(2)).detach()
    torch.testing.assert_close(trainer.callback_metrics["train_loss"], expected)


def test_latent_classes_are_logged_and_a_teacher_follows(ssl, loader, fit):
    model = ssl(latent_classes=8, teacher_momentum=0.9, queue_size=40, latent_after=2)
    trainer = fit(model, loader(images=48))
    logged = trainer.callback_metrics
    assert logged["train_latent_classes"] == 8
    assert logged["train_latent_seen"] == 3 * 32
    assert model.criterion.pseudo_labels.calls == 6
    backbone = dict(model.backbone.named_parameters())
    for name, value in model.teacher[0].named_parameters():
        assert not value.requires_grad
        assert value.ndim < 2 or not torch.equal(value, backbone[name])


def test_a_checkpoint_is_loaded_by_its_hyperparameters(ssl, loader, fit, tmp_path):
    model = ssl(latent_classes=8, teacher_momentum=0.9)
    trainer = fit(model, loader(images=48), max_epochs=1)
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    again = VarConSSL.load_from_checkpoint(path, weights_only=True)
    assert again.criterion.pseudo_labels.num_classes == 8
    assert again.criterion.pseudo_labels.calls == 3
    for one, two in zip(weights(model), weights(again), strict=True):
        assert torch.equal(one, two)


def test_a_collapse_is_warned_of(ssl, loader, fit):
    model = ssl(latent_classes=8)
    model.monitor.signs.patience = 1
    point = torch.ones(32, 128, requires_grad=True)
    model._encode = lambda images: (model(images), 1 * point[: len(images)])
    with pytest.warns(UserWarning, match="one_latent_class: 100% of a batch"):
        fit(model, loader(images=48), max_epochs=1)


def test_too_many_classes_are_told_before_training(ssl, loader, fit):
    model = ssl(latent_classes=40)
    with pytest.raises(ValueError, match="got 40 classes with 32 embeddings"):
        fit(model, loader())
    assert model.criterion.pseudo_labels.calls == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"leave_one_out": True}, "leave_one_out is for class references"),
        ({"centroid_momentum": 0.9}, "centroid_momentum is for class references"),
        ({"teacher_momentum": 0.9}, "teacher_momentum makes a teacher for"),
        (
            {"teacher_momentum": 1.0, "latent_classes": 8},
            r"teacher_momentum must be in \[0, 1\), got 1.0",
        ),
    ],
)
def test_arguments_that_do_not_fit(ssl, options, message):
    with pytest.raises(ValueError, match=message):
        ssl(**options)
