import math

import pytest
import torch
from lightly.transforms import SimCLRTransform
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins import MixedPrecision
from torch.utils.data import DataLoader

import varcon_plugin
import varcon_plugin.lightly
from varcon_plugin.evaluation.knn import knn_accuracy
from varcon_plugin.lightly import VarCon
from varcon_plugin.training.lars import ForeachLARS

# Saving again where the interrupted run saved, as the trainer does.
SAME_FOLDER = "ignore:Checkpoint directory .* exists and is not empty:UserWarning"


@pytest.fixture
def loaders(loader):
    """Training loader, k-NN bank and validation images, as lightly's benchmark."""
    return loader(), [loader(views=0), loader(views=0, images=12)]


def test_it_is_called_as_the_benchmark_calls_simclr():
    model = VarCon(batch_size_per_device=2, num_classes=7, knn_k=200, knn_t=0.1)
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 2048)
    assert model.online_classifier.feature_dim == 2048
    assert isinstance(varcon_plugin.lightly.transform, SimCLRTransform)


@pytest.mark.parametrize("items", [2, 3])
@pytest.mark.parametrize("views", [1, 2, 3])
def test_loss_is_the_core_s_for_any_views_with_or_without_filenames(
    varcon, loader, fit, views, items
):
    model = varcon(lr=0.0, temperature=0.2, epsilon=0.1)
    batches = loader(images=16, views=views, items=items)
    trainer = fit(model, batches, max_epochs=1)
    images, targets = next(iter(batches))[:2]
    embeddings = model.projection_head(model.backbone(torch.cat(images)))
    core = varcon_plugin.VarConLoss(temperature=0.2, epsilon=0.1)
    terms = core.forward_components(embeddings, targets.repeat(views))
    logged = trainer.callback_metrics
    torch.testing.assert_close(logged["train_loss"], terms.loss.detach())
    for name in ("kl", "nll", "tau2", "confidence"):
        torch.testing.assert_close(logged[f"train_{name}"], getattr(terms, name).mean())


@pytest.mark.parametrize("precision", ["32", "bf16-mixed", "bf16-true"])
def test_it_learns_in_every_precision(varcon, loaders, fit, precision):
    model = varcon(warmup_epochs=2)
    trainer = fit(model, *loaders, max_epochs=8, precision=precision)
    metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["train_loss"] < 1.0  # at the start: 2 log 4 = 2.8
    assert metrics["val_knn_top1"] >= 0.9  # chance: 0.25
    assert metrics["val_online_cls_top1"] >= 0.25
    half = precision == "bf16-true"
    assert next(model.parameters()).dtype == (torch.bfloat16 if half else torch.float32)


def test_class_references_can_outlive_the_batch(varcon, loader, fit):
    model = varcon(centroid_momentum=0.9)
    fit(model, loader(), max_epochs=1)
    bank = model.criterion.centroids
    assert bank.means.shape == (4, 128)
    assert bank.counts.tolist() == [16, 16, 16, 16]  # 8 images, 2 views


@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step:UserWarning")
def test_a_bank_follows_the_gradient_scaler(varcon, loader, fit):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    model = varcon(centroid_momentum=0.9, num_classes=4)
    precision = MixedPrecision("16-mixed", "cpu", scaler)
    trainer = fit(model, loader(), max_epochs=1, plugins=precision, precision=None)
    assert trainer.global_step > 0
    assert scaler.get_scale() < 2.0**120  # steps were skipped
    assert model.criterion.centroids._scaler is scaler


def test_a_bank_moves_once_in_each_step_of_the_optimizer(varcon, loader, fit):
    settings = {"centroid_momentum": 0.9, "accumulation_steps": 2}
    model = varcon(**settings, num_negatives=3)
    fit(model, loader(), max_epochs=1, accumulate_grad_batches=2)
    bank = model.criterion.centroids
    assert (bank.num_negatives, bank.accumulation_steps) == (3, 2)
    assert bank.counts.tolist() == [16, 16, 16, 16]
    for steps in (1, 4):
        with pytest.raises(ValueError, match=rf"must be {steps}, the accumulate_grad_"):
            fit(varcon(**settings), loader(), accumulate_grad_batches=steps)


@pytest.mark.parametrize(
    "options", [{"num_negatives": 2}, {"accumulation_steps": 2}], ids=str
)
def test_options_of_a_bank_need_one(varcon, options):
    with pytest.raises(ValueError, match="needs a centroid_momentum, got None"):
        varcon(**options)


class Scaled(torch.nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, predictions, targets):
        return self.scale * predictions.sum()


def test_the_online_classifier_does_not_train_the_backbone(varcon, loader):
    batch = next(iter(loader()))
    gradients = []
    for scale in (0.0, 100.0):
        model = varcon()
        model.log = model.log_dict = lambda *_, **__: None
        model.online_classifier.criterion = Scaled(scale)
        model.training_step(batch, 0).backward()
        gradients.append([p.grad.clone() for p in model.backbone.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


def test_knn_is_that_of_the_evaluation(varcon, loader, loaders, fit):
    model = varcon(knn_k=7)
    trainer = fit(model, *loaders, max_epochs=1)
    model.eval()
    split = []
    with torch.no_grad():
        for images in loaders[1]:
            split.append(torch.cat([model(batch[0]) for batch in images]))
            split.append(torch.cat([batch[1] for batch in images]))
    expected = knn_accuracy(*split, ks=[7], temperatures=[0.1])[7, 0.1].top1 / 100
    assert float(trainer.callback_metrics["val_knn_top1"]) == pytest.approx(expected)
    assert model.knn_classifier._train_features_tensor is None  # memory is freed


def test_a_bank_smaller_than_knn_k_votes_in_full(varcon, loaders, fit):
    trainer = fit(varcon(knn_k=200), *loaders, max_epochs=1)
    assert 0 <= float(trainer.callback_metrics["val_knn_top1"]) <= 1


def test_a_single_validation_loader_has_no_knn(varcon, loader, fit):
    trainer = fit(varcon(), loader(), loader(views=0), max_epochs=1)
    assert "val_online_cls_top1" in trainer.callback_metrics
    assert "val_knn_top1" not in trainer.callback_metrics


def test_optimizer_is_lars_with_square_root_scaling(varcon, loader, fit):
    model = varcon(weight_decay=1e-3, warmup_epochs=0)
    trainer = fit(model, loader(), max_epochs=1)
    (optimizer,) = trainer.optimizers
    assert isinstance(optimizer, ForeachLARS)
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert {g["initial_lr"] for g in groups.values()} == {0.075 * math.sqrt(16)}
    assert groups["varcon"]["weight_decay"] == 1e-3
    names = {id(p): name for name, p in model.named_parameters()}
    decayed = {names[id(p)] for p in groups["varcon"]["params"]}
    assert decayed == {n for n, p in model.named_parameters() if p.ndim > 1} - {
        "online_classifier.classification_head.weight"
    }
    for name in ("varcon_no_weight_decay", "online_classifier"):
        assert groups[name]["weight_decay"] == 0
        assert groups[name]["lars_exclude"]
    assert "lars_exclude" not in groups["varcon"]
    assert sum(len(g["params"]) for g in groups.values()) == len(names)


class RecordLr(Callback):
    """Learning rate of each step, as a share of the highest."""

    def __init__(self):
        self.values = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        group = trainer.optimizers[0].param_groups[0]
        self.values.append(group["lr"] / group["initial_lr"])


@pytest.mark.parametrize(
    ("epochs", "warmup_epochs", "steps"), [(6, 2, 4), (2, 10, 2), (3, 0, 0)]
)
def test_warmup_is_at_most_half_of_the_run(
    varcon, loader, fit, epochs, warmup_epochs, steps
):
    record = RecordLr()
    model = varcon(warmup_epochs=warmup_epochs)
    fit(model, loader(), max_epochs=epochs, callbacks=[record])  # 2 steps an epoch
    ramp = [(step + 1) / steps for step in range(steps)]
    assert record.values[:steps] == pytest.approx(ramp)
    falling = record.values[steps:]
    assert falling == sorted(falling, reverse=True)
    assert falling[-1] == pytest.approx(0.001)


def test_warmup_counts_accumulated_batches_once(varcon, loader, fit):
    record = RecordLr()
    fit(
        varcon(warmup_epochs=1),
        loader(images=64),
        max_epochs=4,
        accumulate_grad_batches=2,
        callbacks=[record],
    )
    assert record.values[:4] == pytest.approx([0.5, 0.5, 1.0, 1.0])


def test_an_endless_run_is_refused(varcon, loader, fit):
    with pytest.raises(ValueError, match="give the Trainer max_epochs or max_steps"):
        fit(varcon(), loader(), max_epochs=-1)


class StopAfter(Callback):
    def __init__(self, epochs):
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, module):
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


def interrupted(fit, model, loaders, folder, epochs):
    saving = ModelCheckpoint(folder, "saved")
    fit(
        model,
        *loaders,
        max_epochs=4,
        enable_checkpointing=True,
        callbacks=[StopAfter(epochs), saving],
    )
    return folder / "saved.ckpt"


@pytest.mark.filterwarnings(SAME_FOLDER)
@pytest.mark.parametrize("momentum", [None, 0.9])
def test_resuming_continues_as_if_never_interrupted(
    varcon, loaders, fit, tmp_path, momentum
):
    settings = {"warmup_epochs": 1, "centroid_momentum": momentum}
    whole = varcon(**settings)
    fit(whole, *loaders, max_epochs=4)
    path = interrupted(fit, varcon(**settings), loaders, tmp_path, 2)
    resumed = VarCon(16, 4, 5, 0.1, backbone="test_resnet", **settings)
    fit(
        resumed,
        *loaders,
        max_epochs=4,
        ckpt_path=path,
        enable_checkpointing=True,
        callbacks=[ModelCheckpoint(tmp_path, "saved")],
    )
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, msg=name)


@pytest.mark.filterwarnings(SAME_FOLDER)
def test_a_longer_run_resumes_on_its_own_schedule(varcon, loaders, fit, tmp_path):
    path = interrupted(fit, varcon(warmup_epochs=0), loaders, tmp_path, 4)
    record = RecordLr()
    model = varcon(warmup_epochs=0)
    fit(
        model,
        *loaders,
        max_epochs=8,
        ckpt_path=path,
        enable_checkpointing=True,
        callbacks=[record, ModelCheckpoint(tmp_path, "saved")],
    )
    assert len(record.values) == 8
    assert record.values[1] == pytest.approx(
        0.5 + 0.5 * math.cos(math.pi * 9 / 15), abs=1e-3
    )
    assert record.values[-1] == pytest.approx(0.001)


def test_a_checkpoint_rebuilds_the_module(varcon, loaders, fit, tmp_path):
    model = varcon(stem="imagenet", backbone_kwargs={"drop_path_rate": 0.1})
    path = interrupted(fit, model, loaders, tmp_path, 1)
    loaded = VarCon.load_from_checkpoint(path, weights_only=True).eval()
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(loaded(images), model.eval()(images))


def test_references_of_a_slow_encoder_and_small_views(varcon, fit, loader):
    model = varcon(ema_decay=0.5, centroid_momentum=0.9)
    data = loader(views=2)
    mixed = [
        ([*views, *torch.randn(3, 16, 3, 16, 16)], targets, names)
        for views, targets, names in data
    ]
    fit(model, DataLoader(mixed, batch_size=None), max_epochs=1)
    assert int(model.ema.n_averaged) == len(mixed)
    slow = model.ema.module[0].state_dict()
    fast = model.backbone.state_dict()
    moved = [n for n in fast if not torch.equal(slow[n], fast[n])]
    assert moved
    assert model.criterion.centroids.counts.sum() == 5 * 16 * len(mixed)
    optimised = {
        p for g in model.trainer.optimizers[0].param_groups for p in g["params"]
    }
    assert optimised.isdisjoint(model.ema.parameters())
