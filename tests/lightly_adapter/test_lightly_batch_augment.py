"""lightly's SimCLR transform on the batch, in Lightning's hooks."""

import copy
import inspect
import random

import numpy as np
import pytest
import torch
from lightly.transforms import SimCLRTransform
from PIL import Image
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from sklearn.datasets import load_sample_image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from varcon_plugin.lightly import AugmentOnDevice, EpochSeed, SimCLRBatchTransform
from varcon_plugin.training.crops import TwoCrops
from varcon_plugin.training.damaged import ReplaceCorrupt

# the resumed run writes elsewhere
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")

OFF = {"cj_prob": 0, "random_gray_scale": 0, "gaussian_blur": 0, "hf_prob": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight JPEGs of two classes."""
    root = tmp_path_factory.mktemp("images")
    for label, name in enumerate(("china.jpg", "flower.jpg")):
        (root / str(label)).mkdir()
        for index in range(4):
            corner = 40 * index
            crop = load_sample_image(name)[corner : corner + 90, corner : corner + 120]
            Image.fromarray(crop).save(root / str(label) / f"{index}.jpg", quality=95)
    return root


class RecordViews(AugmentOnDevice, LightningModule):
    """Keeps the batches that reach a step."""

    def __init__(self):
        super().__init__()
        self.batch_transform = SimCLRBatchTransform()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained, self.validated = [], []

    def training_step(self, batch, batch_idx):
        views, targets = batch
        self.trained.append((torch.stack(views), targets))
        torch.rand(batch_idx + 3)  # another consumer of random numbers
        return self.weight * 0

    def validation_step(self, batch, batch_idx):
        self.validated.append(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder, root, *, epochs, checkpoint=None, seed=0):
    model = RecordViews()
    crops = TwoCrops(32)
    data = ImageFolder(str(folder), loader=str, transform=crops)
    every_epoch = ModelCheckpoint(root, filename="{epoch}", save_top_k=-1)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=root,
        callbacks=[EpochSeed(crops, model.batch_transform, seed=seed), every_epoch],
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        num_sanity_val_steps=1,
    )
    trainer.fit(
        model,
        # in order: Lightning 2.6 starts the workers of a resumed run before it tells
        # the sampler the epoch
        DataLoader(data, 4, num_workers=2, persistent_workers=True),
        DataLoader(data, 4, num_workers=0),
        ckpt_path=checkpoint,
    )
    return model


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b)
        for x, y in zip(one, other, strict=True)
        for a, b in zip(x, y, strict=True)
    )


def test_names_and_defaults_are_lightlys():
    theirs = inspect.signature(SimCLRTransform).parameters
    ours = inspect.signature(SimCLRBatchTransform).parameters
    crop = {"input_size", "min_scale"}
    absent = {"vf_prob", "rr_prob", "rr_degrees"}  # off by default
    assert set(ours) - {"channels_last"} == set(theirs) - crop - absent
    for name in set(ours) & set(theirs):
        assert ours[name].default == theirs[name].default
    crops = TwoCrops()
    assert crops.size == (theirs["input_size"].default,) * 2
    assert crops.scale == (theirs["min_scale"].default, 1.0)


def test_pixels_are_those_of_lightlys_transform(folder):
    path = folder / "0" / "0.jpg"
    theirs = SimCLRTransform(input_size=90, min_scale=1.0, **OFF)
    crops = TwoCrops(90, scale=(1.0, 1.0))
    torch.manual_seed(0)
    random.seed(0)
    expected = torch.stack(theirs(Image.open(path)))
    views = [view[None] for view in crops(path)]
    (ours, *rest) = SimCLRBatchTransform(**OFF)((views, torch.tensor([0]), ["name"]))
    assert rest == [torch.tensor([0]), ["name"]]
    # decoders round differently: a level or two
    assert (torch.cat(ours) - expected).abs().max() * 57 < 3.5


def test_without_normalize_values_are_in_0_1(folder):
    views = [view[None] for view in TwoCrops(16)(folder / "0" / "0.jpg")]
    ((first, _), _) = SimCLRBatchTransform(normalize=None, **OFF)((views, 0))
    expected = views[0].permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-6)


def test_strength_multiplies_the_jitter():
    ranges = SimCLRBatchTransform(cj_strength=0.5).augment.ranges
    assert np.allclose(ranges, [(0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1)])


def test_augmented_datasets_are_refused():
    views = [torch.zeros(2, 3, 8, 8)] * 2
    with pytest.raises(TypeError, match="views must be uint8"):
        SimCLRBatchTransform()((views, torch.zeros(2)))


def test_damaged_files_are_replaced(folder, tmp_path, caplog):
    path = folder / "0" / "0.jpg"
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "whole.jpg").write_bytes(path.read_bytes())
    (tmp_path / "class" / "half.jpg").write_bytes(path.read_bytes()[:700])
    data = ImageFolder(str(tmp_path), loader=str, transform=TwoCrops(8))
    batches = list(DataLoader(ReplaceCorrupt(data), 1))
    assert len(batches) == 2
    assert "half.jpg cannot be used" in caplog.text


def test_lightning_resumes_where_it_stopped(folder, tmp_path):
    whole = fit(folder, tmp_path / "whole", epochs=3)
    part = fit(folder, tmp_path / "part", epochs=2)
    checkpoint = tmp_path / "part" / "epoch=1.ckpt"
    rest = fit(folder, tmp_path / "rest", epochs=3, checkpoint=checkpoint)
    assert same(part.trained, whole.trained[:4])
    assert same(rest.trained, whole.trained[4:])
    assert not same(whole.trained[:2], whole.trained[2:4])
    views, targets = whole.trained[0]
    assert views.shape == (2, 4, 3, 32, 32)
    assert views.dtype == torch.float32
    assert targets.shape == (4,)
    # validation batches pass through untouched
    assert whole.validated[0][0].dtype == torch.uint8


def test_a_checkpoint_of_the_module_holds_weights_alone():
    assert list(RecordViews().state_dict()) == ["weight"]
    copy.deepcopy(RecordViews())
