"""Every direction ends in a network that gives the same features."""

import argparse
import json
import os
import resource
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from paths import REPO
from safetensors.torch import load_file
from torch import nn
from torchvision.models import resnet18, resnet50

import varcon_plugin.mmpretrain  # noqa: F401  registers everything
from varcon_plugin.checkpoints.backbones import shrink_stem
from varcon_plugin.checkpoints.conversion import (
    read_backbone,
    timm_model,
    torchvision_model,
)
from varcon_plugin.checkpoints.reading import load_state_dict
from varcon_plugin.checkpoints.recorded import literals
from varcon_plugin.commands import convert as tool
from varcon_plugin.evaluation.sources import timm_encoder
from varcon_plugin.lightly.backbone import create_backbone


def trained_looking(model):
    """Running statistics away from 0 and 1, so that mixing them up shows."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.8, 1.2)
            nn.init.uniform_(module.weight, 0.5, 1.0)
    model.eval()  # returns None for mmpretrain's ResNet
    return model


@torch.no_grad()
def features(model, size):
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    output = model(images)
    if isinstance(output, tuple):  # mmpretrain's stages
        output = output[-1]
    return output.mean(dim=(2, 3)) if output.ndim == 4 else output


def same_features(model, witness, size=32):
    expected = features(witness, size)
    assert expected.std() > 1e-3
    model.eval()
    torch.testing.assert_close(features(model, size), expected)


def authors_checkpoint(path, network=resnet18, prefix=""):
    """What the authors' script saves, from a torchvision network: names of its own."""
    model = network(weights=None)
    shrink_stem(model, "a ResNet")
    model.fc = nn.Identity()
    trained_looking(model)
    head = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))
    state = {
        f"{prefix}encoder.{name.replace('downsample', 'shortcut')}": value
        for name, value in model.state_dict().items()
    }
    state |= {f"{prefix}head.{n}": value for n, value in head.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    content = {
        "opt": argparse.Namespace(lr=0.5, batch_size=128),
        "model": state,
        "optimizer": optimizer.state_dict(),
        "epoch": 200,
    }
    torch.save(content, path)
    return model, head


def mmpretrain_checkpoint(path, **backbone):
    """What mmpretrain saves for a model of ours."""
    init_default_scope("mmpretrain")
    model = trained_looking(MODELS.build(backbone))
    state = {f"backbone.{n}": value for n, value in model.state_dict().items()}
    state["neck.fc0.weight"] = torch.zeros(4, 4)
    torch.save({"state_dict": state, "meta": {}}, path)
    return model


def convert(source, out, to, *more):
    tool.main([str(source), str(out), "--to", to, *map(str, more)])


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_authors_to_ours(tmp_path, prefix):
    source, out = tmp_path / "authors.pth", tmp_path / "ours.pth"
    witness, head = authors_checkpoint(source, prefix=prefix)
    convert(source, out, "varcon")
    model = MODELS.build(
        {
            "type": "mmpretrain.VarCon",
            "backbone": {"type": "ResNet_CIFAR", "depth": 18},
            "neck": {
                "type": "MoCoV2Neck",
                "in_channels": 512,
                "hid_channels": 512,
                "out_channels": 128,
            },
            "head": {"type": "VarConHead"},
        }
    ).eval()
    model.load_state_dict(load_state_dict(out))
    same_features(model.backbone, witness)
    pooled = features(witness, 32)
    maps = pooled[:, :, None, None]
    torch.testing.assert_close(model.neck((maps,))[0], head(pooled))


@pytest.mark.parametrize("to", ["torchvision", "timm", "plain"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_mmpretrain_resnet_to(tmp_path, to, suffix):
    source, out = tmp_path / "epoch_1.pth", tmp_path / f"out{suffix}"
    witness = mmpretrain_checkpoint(source, type="ResNet", depth=50)
    convert(source, out, to)
    state = load_file(out) if suffix == ".safetensors" else load_state_dict(out)
    if to == "timm":
        model = timm.create_model("resnet50", num_classes=0)
    else:
        model = resnet50(weights=None)
        model.fc = nn.Identity()
    model.load_state_dict(state)
    same_features(model, witness, 64)


def test_mmpretrain_cifar_resnet_to_both_libraries(tmp_path):
    source = tmp_path / "epoch_1.pth"
    witness = mmpretrain_checkpoint(source, type="ResNet_CIFAR", depth=18)
    backbone = read_backbone(source)
    assert (backbone.arch, backbone.stem) == ("resnet18", "cifar")
    same_features(torchvision_model(backbone), witness)
    same_features(timm_model(backbone), witness)


@pytest.mark.parametrize(
    ("name", "arch"),
    [("resnet18", None), ("vit_tiny_patch16_224", "vit_tiny_patch16_224")],
)
@pytest.mark.parametrize("door", ["mmpretrain", "lightly"])
def test_timm_backbones_come_back_from_either_door(tmp_path, name, arch, door):
    source, out = tmp_path / "in.ckpt", tmp_path / "out.safetensors"
    witness = trained_looking(timm.create_model(name, num_classes=0))
    inner = "backbone.timm_model." if door == "mmpretrain" else "backbone."
    state = {f"{inner}{n}": value for n, value in witness.state_dict().items()}
    state["projection_head.layers.0.weight"] = torch.zeros(2, 2)
    torch.save({"state_dict": state, "hyper_parameters": {"backbone": name}}, source)
    convert(source, out, "timm", *(["--arch", arch] if arch else []))
    model = timm.create_model(name, num_classes=0)
    model.load_state_dict(load_file(out))
    same_features(model, witness, 224)
    convert(
        source, tmp_path / "ours.pth", "varcon", *(["--arch", arch] if arch else [])
    )
    back = read_backbone(tmp_path / "ours.pth", arch)
    same_features(timm_model(back), witness, 224)


def test_hub_folder_loads_in_timm_and_says_what_it_is(tmp_path):
    source, out = tmp_path / "epoch_1.pth", tmp_path / "resnet18-varcon"
    witness = mmpretrain_checkpoint(source, type="ResNet", depth=18)
    report = tmp_path / "report.json"
    report.write_text(
        json.dumps(
            {
                "data": {"name": "imagenet", "train": 10, "test": 5},
                "protocols": {
                    "linear": {"top1": 71.234, "top5": 90.0, "mean_per_class": 70.0}
                },
            }
        )
    )
    more = ("--config", REPO / "configs/varcon_r50_imagenet.py", "--report", report)
    convert(source, out, "hub", *more, "--license", "apache-2.0")
    model = timm.create_model(f"local-dir:{out}", pretrained=True)
    same_features(model, witness, 64)
    assert model.pretrained_cfg["mean"] == pytest.approx((0.485, 0.456, 0.406), 1e-4)
    config = json.loads((out / "config.json").read_text())
    assert claims(config) == ["license"]
    assert config["pretrained_cfg"]["license"] == "apache-2.0"
    card = ModelCard.load(out / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "timm"
    assert "71.23" in card.text
    assert "arXiv 2506.07413" in card.text


FOREIGN = ("license", "origin_url", "paper", "url", "hf_hub", "test_", "description")


def claims(config):
    """What a config of the Hub says of licence, paper, address and tests."""
    return [key for key in config["pretrained_cfg"] if key.startswith(FOREIGN)]


def lightly_checkpoint(path, **settings):
    """What Lightning saves of a `VarCon`; its backbone, and a head that is not read."""
    model = trained_looking(create_backbone(**settings))
    state = {f"backbone.{n}": value for n, value in model.state_dict().items()}
    kwargs = {k: v for k, v in settings.items() if k in ("channels",)}
    hyper_parameters = {
        "backbone": settings["name"],
        "backbone_kwargs": kwargs | {"pretrained": True, "checkpoint_path": "a.pth"},
        "stem": settings.get("stem", "imagenet"),
        "image_size": settings["image_size"],
    }
    content = {"state_dict": state, "hyper_parameters": hyper_parameters}
    torch.save(content | {"global_step": 1}, path)
    return model


def test_a_transformer_trained_at_another_size_goes_to_the_hub(tmp_path):
    source, out = tmp_path / "last.ckpt", tmp_path / "vit"
    witness = lightly_checkpoint(source, name="vit_tiny_patch16_224", image_size=96)
    convert(source, out, "hub")
    model = timm.create_model(f"local-dir:{out}", pretrained=True)
    same_features(model, witness, 96)
    config = json.loads((out / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [3, 96, 96]
    assert claims(config) == []
    assert "Input: RGB, 96 x 96" in (out / "README.md").read_text()
    convert(source, tmp_path / "vit.pth", "timm")
    same_features(timm_model(read_backbone(source)), witness, 96)


def test_a_narrow_network_with_a_stem_for_small_images_is_read_whole(tmp_path):
    source, out = tmp_path / "last.ckpt", tmp_path / "narrow"
    witness = lightly_checkpoint(
        source,
        name="resnet18",
        stem="cifar",
        channels=[16, 32, 64, 128],
        image_size=32,
    )
    same_features(timm_model(read_backbone(source)), witness)
    convert(source, out, "hub")
    run_card(out, witness, 32)
    with pytest.raises(SystemExit, match="do not fill torchvision's resnet18"):
        convert(source, tmp_path / "out.pth", "torchvision")


def test_mmpretrain_says_timm_s_model_and_its_images_in_the_config(tmp_path):
    source, out = tmp_path / "epoch_1.pth", tmp_path / "vit"
    cfg = Config.fromfile(REPO / "configs/varcon_vit_b16_imagenet.py")
    cfg.model.backbone.model_name = "vit_tiny_patch16_224"
    witness = mmpretrain_checkpoint(source, **cfg.model.backbone).timm_model
    content = torch.load(source)
    content["meta"]["cfg"] = cfg.pretty_text
    torch.save(content, source)
    convert(source, out, "hub")
    model = timm.create_model(f"local-dir:{out}", pretrained=True)
    same_features(model, witness, 224)
    config = json.loads((out / "config.json").read_text())["pretrained_cfg"]
    assert config["mean"] == pytest.approx([0.485, 0.456, 0.406], 1e-4)
    assert config["input_size"] == [3, 224, 224]


def test_the_text_of_a_config_is_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (
        "import os\nos.mkdir('owned')\nwork_dir = os.mkdir('owned')\n"
        "model = dict(backbone=dict(model_name='resnet18', depth=os.mkdir('owned')))\n"
    )
    assert literals(text) == {
        "work_dir": None,
        "model": {"backbone": {"model_name": "resnet18", "depth": None}},
    }
    assert literals("model = [" * 5000) == literals("def") == {}
    assert not list(tmp_path.iterdir())


def test_a_hub_folder_needs_the_size_of_the_images(tmp_path):
    source, out = tmp_path / "authors.pth", tmp_path / "resnet18"
    authors_checkpoint(source)
    with pytest.raises(SystemExit, match=r"does not say what images.*give --config"):
        convert(source, out, "hub")
    config = tmp_path / "none.py"
    config.write_text("train_dataloader = dict(dataset=dict(pipeline=[]))\n")
    with pytest.raises(SystemExit, match=r"none\.py: .* crops images to no size"):
        convert(source, out, "hub", "--config", config)
    assert not out.exists()


def run_card(folder, witness, size):
    """The lines of Python in the model card give the features of ``witness``."""
    card = (folder / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    torch.save(images, folder.parent / "images.pt")
    script = (
        "import torch\nimages = torch.load('images.pt')\n"
        f"{code}\ntorch.save(features.detach(), 'features.pt')\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=folder.parent)
    found = torch.load(folder.parent / "features.pt")
    torch.testing.assert_close(found, features(witness, size))


def test_the_model_card_of_a_cifar_network_runs(tmp_path):
    source, out = tmp_path / "authors.pth", tmp_path / "resnet18-cifar"
    witness, _ = authors_checkpoint(source)
    convert(source, out, "hub", "--config", REPO / "configs/varcon_r50_cifar100.py")
    card = (out / "README.md").read_text()
    assert "32 x 32, mean (0.5071, 0.4865, 0.4409)" in card
    run_card(out, witness, 32)


VIT = "vit_tiny_patch16_224"


@pytest.fixture(params=["mmpretrain", "lightly"])
def small_vit(request, tmp_path, _shallow):
    """A ViT for images of 64 pixels, as either door saves it; its checkpoint."""
    witness = timm.create_model(VIT, num_classes=0, img_size=64).eval()
    nn.init.normal_(witness.pos_embed)
    inner = "backbone.timm_model." if request.param == "mmpretrain" else "backbone."
    state = {f"{inner}{n}": value for n, value in witness.state_dict().items()}
    source = tmp_path / "in.ckpt"
    torch.save({"state_dict": state}, source)
    return witness, source


@pytest.fixture
def _shallow(monkeypatch):
    """timm's ViT with two blocks of twelve, in every place that builds one."""
    create = timm.create_model

    def shallow(name, **options):
        return create(name, **({"depth": 2} if name == VIT else {}), **options)

    monkeypatch.setattr(timm, "create_model", shallow)


def test_a_vit_of_small_images_goes_in_every_direction(small_vit, tmp_path, capsys):
    witness, source = small_vit
    arch = ("--arch", VIT)
    convert(source, tmp_path / "timm.safetensors", "timm", *arch)
    assert "img_size=64" in capsys.readouterr().out
    model = timm.create_model(VIT, num_classes=0, img_size=64)
    model.load_state_dict(load_file(tmp_path / "timm.safetensors"))
    same_features(model, witness, 64)
    convert(source, tmp_path / "plain.pth", "plain", *arch)
    model.load_state_dict(load_state_dict(tmp_path / "plain.pth"))
    same_features(model, witness, 64)
    convert(source, tmp_path / "ours.pth", "varcon", *arch)
    ours = MODELS.build({"type": "mmpretrain.TIMMEncoder", "model_name": VIT,
                         "img_size": 64})  # fmt: skip
    state = load_state_dict(tmp_path / "ours.pth")
    ours.load_state_dict({n.removeprefix("backbone."): w for n, w in state.items()})
    same_features(ours, witness, 64)
    with pytest.raises(SystemExit, match="torchvision has no ResNet"):
        convert(source, tmp_path / "no.pth", "torchvision", *arch)


def test_the_hub_folder_of_a_vit_says_its_size(small_vit, tmp_path):
    witness, source = small_vit
    out = tmp_path / "vit-varcon"
    convert(source, out, "hub", "--arch", VIT)
    model = timm.create_model(f"local-dir:{out}", pretrained=True, depth=2)
    same_features(model, witness, 64)
    assert model.pretrained_cfg["input_size"] == (3, 64, 64)
    assert "Input: RGB, 64 x 64" in (out / "README.md").read_text()


def test_a_vit_of_small_images_is_evaluated_at_its_size(small_vit):
    witness, source = small_vit
    encoder = timm_encoder(VIT, source, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.2))
    image = encoder.transform(np.full((80, 80, 3), 51, np.uint8))
    assert image.shape == (3, 64, 64)
    pixels = (0.2 - torch.tensor([0.4, 0.5, 0.6])) / 0.2
    with torch.no_grad():
        expected = witness(pixels.view(1, 3, 1, 1).expand(1, 3, 64, 64))
        torch.testing.assert_close(encoder.module.eval()(image[None]), expected)
    with pytest.raises(ValueError, match="image_size must be 64, that of"):
        timm_encoder(VIT, source, image_size=224)


def test_a_recipe_of_several_crops_is_of_the_large_ones(tmp_path):
    source, out = tmp_path / "epoch_1.pth", tmp_path / "resnet50"
    mmpretrain_checkpoint(source, type="ResNet", depth=18)
    convert(source, out, "hub", "--config", "varcon_r50_imagenet_multicrop")
    assert "Input: RGB, 224 x 224, mean (0.485," in (out / "README.md").read_text()


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def test_what_cannot_be_converted_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source, out = tmp_path / "in.pth", tmp_path / "out.pth"
    torch.save({"model": {"encoder.conv1.weight": Hostile()}}, source)
    with pytest.raises(SystemExit, match=r"cannot be loaded safely.*mkdir"):
        convert(source, out, "varcon")
    assert not (tmp_path / "owned").exists()
    mmpretrain_checkpoint(source, type="ResNet_CIFAR", depth=18, base_channels=16,
                          stem_channels=16)  # fmt: skip
    with pytest.raises(SystemExit, match="no standard ResNet that torchvision"):
        convert(source, out, "torchvision")
    with pytest.raises(SystemExit, match=r"do not fill timm's resnet50: .*Missing"):
        convert(source, out, "timm", "--arch", "resnet50")
    torch.save({"loss": torch.zeros(1)}, source)
    with pytest.raises(SystemExit, match="holds no backbone"):
        convert(source, out, "plain")
    assert not out.exists()


@pytest.fixture
def full_disk():
    """Files end after 100 kB, as on a disk that is full."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)


@pytest.mark.parametrize(
    ("to", "name"),
    [
        ("varcon", "out.pth"),
        ("plain", "out.pth"),
        ("timm", "out.safetensors"),
        ("hub", "out"),
    ],
)
def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path, to, name, request):
    source, out = tmp_path / "in.pth", tmp_path / "written" / name
    mmpretrain_checkpoint(source, type="ResNet_CIFAR", depth=18)
    config = ("--config", REPO / "configs/varcon_r50_cifar100.py")
    convert(source, out, to, *config)
    written = [path for path in out.parent.rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in written}
    request.getfixturevalue("full_disk")
    with pytest.raises(SystemExit) as stopped:
        convert(source, out, to, *config)
    weights = out / "model.safetensors" if to == "hub" else out
    assert str(stopped.value.code).endswith(f"cannot write {weights}: File too large")
    assert {p: p.read_bytes() for p in out.parent.rglob("*") if p.is_file()} == before
