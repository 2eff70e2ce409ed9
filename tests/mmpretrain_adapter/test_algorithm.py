import pytest
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

from varcon_plugin import VarConLoss

IMAGES, VIEWS = 6, 3


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = {
        "type": "VarCon",
        "backbone": {"type": "ResNet_CIFAR", "depth": 18, "base_channels": 8,
                     "stem_channels": 8},
        "neck": {"type": "MoCoV2Neck", "in_channels": 64, "hid_channels": 16,
                 "out_channels": 8},
        "head": {"type": "VarConHead", "loss_weight": 0.5,
                 "loss": {"type": "VarConLoss", "temperature": 0.2}},
    }  # fmt: skip
    return MODELS.build(config).eval()


@pytest.fixture
def views():
    torch.manual_seed(1)
    return [torch.randn(IMAGES, 3, 16, 16) for _ in range(VIEWS)]


def samples(labels):
    return [DataSample().set_gt_label(label) for label in labels]


def test_loss_is_the_core_loss_of_all_views_with_labels_in_view_order(model, views):
    labels = [0, 1, 2, 0, 1, 2]
    losses = model(views, samples(labels), mode="loss")
    embeddings = torch.cat([model.neck(model.backbone(view))[0] for view in views])
    repeated = torch.tensor(labels * VIEWS)
    criterion = VarConLoss(temperature=0.2)
    terms = criterion.forward_components(embeddings, repeated)
    torch.testing.assert_close(losses["loss"], 0.5 * terms.loss)
    for name in ("kl", "nll", "tau2", "confidence"):
        torch.testing.assert_close(losses[name], getattr(terms, name).mean())


def test_mmengine_optimises_the_loss_alone(model, views):
    losses = model(views, samples([0, 1, 2, 0, 1, 2]), mode="loss")
    total, logged = model.parse_losses(losses)
    torch.testing.assert_close(total, losses["loss"])
    assert set(logged) == {"loss", "kl", "nll", "tau2", "confidence"}


def test_a_single_tensor_is_a_single_view(model, views):
    one = model(views[0], samples([0, 1, 2, 0, 1, 2]), mode="loss")
    listed = model(views[:1], samples([0, 1, 2, 0, 1, 2]), mode="loss")
    assert torch.equal(one["loss"], listed["loss"])


@pytest.mark.parametrize("micro_batch_size", [None, 4])
def test_references_of_a_slow_encoder_stand_for_small_views_too(
    model, views, micro_batch_size
):
    config = {"type": "VarCon", "backbone": model.backbone, "neck": model.neck}
    head = {"type": "VarConHead", "loss": {"type": "VarConLoss"}}
    model = MODELS.build(
        {**config, "head": head, "ema_decay": 0.5, "micro_batch_size": micro_batch_size}
    )
    for module in model.modules():
        module.training = not isinstance(module, torch.nn.BatchNorm2d)
    labels = [0, 1, 2, 0, 1, 2]
    model(views, samples(labels), mode="loss")
    with torch.no_grad():
        model.backbone.conv1.weight += 0.1
    small = [torch.randn(IMAGES, 3, 8, 8) for _ in range(2)]
    losses = model([*views[:2], *small], samples(labels), mode="loss")

    def embed(encoder, views):
        return torch.cat([encoder(view)[0] for view in views])

    own = embed(lambda v: model.neck(model.backbone(v)), [*views[:2], *small])
    slow = embed(model.ema, [*views[:2], *views[:2]])
    assert not torch.equal(own[: 2 * IMAGES], slow[: 2 * IMAGES])
    expected = VarConLoss()(own, torch.tensor(labels * 4), reference_embeddings=slow)
    torch.testing.assert_close(losses["loss"], expected)
    losses["loss"].backward()
    assert all(p.grad is None for p in model.ema.parameters())


def test_a_slow_encoder_needs_class_references(model):
    head = {"type": "ClassifierHead", "num_classes": 3, "in_channels": 8}
    with pytest.raises(ValueError, match="ema_decay makes class references"):
        MODELS.build(
            {"type": "VarCon", "backbone": model.backbone, "head": head, "ema_decay": 0}
        )


def test_extract_feat_returns_the_backbone_output(model, views):
    (features,) = model.extract_feat(views[0])
    assert torch.equal(features, model.backbone(views[0])[0])
    assert features.shape == (IMAGES, 64, 2, 2)


@pytest.mark.parametrize("given", [None, []])
def test_no_samples_are_an_error_that_names_the_step(model, views, given):
    with pytest.raises(ValueError, match="PackInputs"):
        model(views, given, mode="loss")


def test_a_sample_without_label_is_an_error_that_names_it(model, views):
    given = [*samples([0, 1, 2, 0, 1]), DataSample(metainfo={"img_path": "x.png"})]
    with pytest.raises(ValueError, match=r"sample 5 \(x\.png\) has no gt_label"):
        model(views, given, mode="loss")


def test_several_labels_of_one_image_are_an_error(model, views):
    given = samples([[0, 1], 1, 2, 0, 1, 2])
    with pytest.raises(ValueError, match="sample 0 has 2"):
        model(views, given, mode="loss")


@pytest.mark.parametrize("size", [4, 18, 100])
def test_micro_batches_leave_loss_and_gradient_as_they_are(model, views, size):
    labels = samples([0, 1, 2, 0, 1, 2])
    results = []
    for micro_batch_size in (None, size):
        model.micro_batch_size = micro_batch_size
        loss = model(views, labels, mode="loss")["loss"]
        weights = [p for p in model.parameters() if p.requires_grad]
        results.append((loss.detach(), torch.autograd.grad(loss, weights)))
    (loss, gradient), (other_loss, other_gradient) = results
    torch.testing.assert_close(other_loss, loss)
    for one, other in zip(gradient, other_gradient, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5)


def test_a_micro_batch_holds_a_view():
    config = {"type": "VarCon", "micro_batch_size": 0}
    parts = {
        "backbone": {"type": "LeNet5"},
        "head": {"type": "VarConHead"},
    }
    with pytest.raises(ValueError, match="must be >= 1, got 0"):
        MODELS.build({**config, **parts})
