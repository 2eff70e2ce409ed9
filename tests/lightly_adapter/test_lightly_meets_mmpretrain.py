"""The two doors: the same loss and gradient, and checkpoints that go through both."""

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.runner import save_checkpoint
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch.utils.data import DataLoader

import varcon_plugin.mmpretrain  # noqa: F401  registers everything
from varcon_plugin.evaluation.sources import timm_encoder
from varcon_plugin.lightly import VarCon
from varcon_plugin.lightly.data import Digits, create_datasets
from varcon_plugin.lightly.evaluation import dataset_features, load_encoder
from varcon_plugin.mmpretrain.evaluation import load_encoder as load_mm_encoder
from varcon_plugin.training.digits import load_digits_split

NORMALIZE = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
CONFIG = {
    "type": "VarCon",
    "backbone": {"type": "ResNet", "depth": 18, "zero_init_residual": False},
    "neck": {
        "type": "NonLinearNeck",
        "in_channels": 512,
        "hid_channels": 512,
        "out_channels": 128,
        "norm_cfg": {"type": "BN1d"},
    },
    "head": {"type": "VarConHead", "loss": {"type": "VarConLoss", "num_classes": 10}},
    "data_preprocessor": {
        "type": "SelfSupDataPreprocessor",
        "to_rgb": True,
        **NORMALIZE,
    },
}


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope("mmpretrain")


@pytest.fixture
def doors():
    """mmpretrain's model and ours with its weights, by the order of their layers."""
    torch.manual_seed(0)
    theirs = MODELS.build(CONFIG)
    theirs.init_weights()
    ours = VarCon(16, 10, 5, 0.1, backbone="resnet18")
    ours.backbone.load_state_dict(theirs.backbone.state_dict())
    neck = ours.projection_head.state_dict()
    values = theirs.neck.state_dict().values()
    ours.projection_head.load_state_dict(dict(zip(neck, values, strict=True)))
    return theirs, ours


def mm_views(theirs, images):
    """Two views of digits, as mmpretrain's preprocessor hands them to the model."""
    pixels = torch.from_numpy(images).repeat_interleave(4, 1).repeat_interleave(4, 2)
    bgr = pixels[:, None].expand(-1, 3, -1, -1)
    batch = {"inputs": [bgr, 255 - bgr], "data_samples": None}
    return theirs.data_preprocessor(batch)["inputs"]


def lightly_views(images):
    """The same two views as lightly's transforms make them."""
    ours = create_datasets("digits").bank.transform.transforms[-2:]
    enlarged = np.kron(images, np.ones((1, 4, 4))).astype(np.uint8)
    rgb = np.repeat(enlarged[..., None], 3, axis=3)
    pairs = [[image, 255 - image] for image in rgb]
    stacked = [[ours[1](ours[0](view)) for view in pair] for pair in pairs]
    return next(iter(DataLoader(stacked, len(stacked))))


def test_same_weights_and_data_give_the_same_loss_and_gradient(doors):
    theirs, ours = (model.double().train() for model in doors)
    images, labels = (part[:16] for part in load_digits_split("train"))
    views = [view.double() for view in lightly_views(images)]
    for view, theirs_view in zip(views, mm_views(theirs, images), strict=True):
        torch.testing.assert_close(theirs_view.double(), view, rtol=1e-5, atol=1e-6)

    samples = [DataSample().set_gt_label(int(label)) for label in labels]
    torch.manual_seed(3)
    mm_loss = theirs(views, samples, mode="loss")["loss"]
    mm_loss.backward()

    logged = {}
    ours.log = lambda name, value, **_: logged.update({name: value})
    ours.log_dict = lambda *_, **__: None
    torch.manual_seed(3)
    ours.training_step((views, torch.from_numpy(labels)), 0).backward()

    assert mm_loss.item() > 0.1
    torch.testing.assert_close(logged["train_loss"], mm_loss, rtol=1e-12, atol=0)
    pairs = [
        *zip(theirs.backbone.parameters(), ours.backbone.parameters(), strict=True),
        *zip(theirs.neck.parameters(), ours.projection_head.parameters(), strict=True),
    ]
    for mm_parameter, parameter in pairs:
        assert parameter.grad.abs().max() > 0
        torch.testing.assert_close(
            parameter.grad, mm_parameter.grad, rtol=1e-9, atol=1e-14
        )


@pytest.fixture
def lightly_checkpoint(fit, loader, tmp_path):
    """A small ResNet-18 trained for one epoch with the trainer's own settings."""
    torch.manual_seed(0)
    model = VarCon(
        16,
        4,
        5,
        0.1,
        backbone="resnet18",
        backbone_kwargs={"channels": [8, 8, 16, 16]},
        image_size=32,
    )
    trainer = fit(model, loader(), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "lightly.ckpt")
    return tmp_path / "lightly.ckpt", model.eval()


def test_the_evaluation_reads_a_lightly_checkpoint(lightly_checkpoint):
    path, model = lightly_checkpoint
    expected = dataset_features(model, create_datasets("digits").val, title="val")
    encoder = load_encoder(path)
    raw = Digits("test", lambda image: encoder.transform(np.asarray(image)))
    features = dataset_features(encoder.module, raw, title="val")
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert expected.std(dim=0).max() > 0.01
    assert encoder.about["model"] == "resnet18"
    embeddings = encoder.projection.eval()(features[:5])
    torch.testing.assert_close(embeddings, model.projection_head(features[:5]))


def test_a_lightly_checkpoint_goes_into_mmpretrain(doors, fit, loader, tmp_path):
    _, model = doors
    trainer = fit(model, loader(), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "lightly.ckpt")
    (tmp_path / "config.py").write_text(
        f"model = {CONFIG}\n"
        "test_dataloader = dict(dataset=dict(pipeline=[dict(type='PackInputs')]))\n"
    )
    encoder = load_mm_encoder(tmp_path / "config.py", tmp_path / "lightly.ckpt")
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    expected = load_encoder(tmp_path / "lightly.ckpt").module.eval()(images)
    features = encoder.module.eval()(images)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


def test_a_mmpretrain_config_starts_from_a_lightly_checkpoint(
    doors, fit, loader, tmp_path
):
    _, model = doors
    fit(model, loader(), max_epochs=1).save_checkpoint(tmp_path / "lightly.ckpt")
    init_cfg = {
        "type": "Pretrained",
        "checkpoint": str(tmp_path / "lightly.ckpt"),
        "prefix": "backbone.",
    }
    theirs = MODELS.build({**CONFIG["backbone"], "init_cfg": init_cfg})
    theirs.init_weights()
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], value), name


def test_a_mmpretrain_checkpoint_goes_into_a_timm_backbone(doors, tmp_path):
    theirs, _ = doors
    path = tmp_path / "epoch_1.pth"
    save_checkpoint(
        {"state_dict": theirs.state_dict(), "meta": {"epoch": 1}}, str(path)
    )
    encoder = timm_encoder("resnet18", path, image_size=32)
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    batch = {"inputs": images.flip(1), "data_samples": None}
    (maps,) = theirs.eval().extract_feat(theirs.data_preprocessor(batch)["inputs"])
    torch.testing.assert_close(
        encoder.module.eval()(images), maps.mean(dim=(2, 3)), rtol=1e-4, atol=1e-5
    )


def test_other_checkpoints_are_refused(doors, lightly_checkpoint, tmp_path):
    theirs, _ = doors
    path = tmp_path / "epoch_1.pth"
    save_checkpoint({"state_dict": theirs.state_dict()}, str(path))
    with pytest.raises(ValueError, match=r"no checkpoint of varcon_plugin\.lightly"):
        load_encoder(path)
    content = torch.load(lightly_checkpoint[0], weights_only=True)
    content["state_dict"].pop("backbone.layer2.0.conv1.weight")
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"missing: layer2\.0\.conv1\.weight"):
        load_encoder(path)
    with pytest.raises(FileNotFoundError, match="absent"):
        load_encoder(tmp_path / "absent.ckpt")
