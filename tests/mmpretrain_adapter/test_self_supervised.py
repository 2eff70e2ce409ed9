"""Training without labels through mmengine: no label is read, bad batches are told."""

import uuid
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from paths import REPO

from varcon_plugin.mmpretrain.blame import ConfigError
from varcon_plugin.mmpretrain.launch import prepare
from varcon_plugin.mmpretrain.preflight import preflight

SUPERVISED = {
    "model.type": "VarCon",
    "model.head": {"_delete_": True, "type": "VarConHead"},
}


def settings(work_dir, *, hook=True, **changes):
    """Four iterations of 16 digits."""
    cfg = Config.fromfile(REPO / "configs" / "varcon_ssl_r18_digits.py")
    cfg.merge_from_dict(
        {
            "work_dir": str(work_dir),
            "launcher": "none",
            "model.backbone.base_channels": 4,
            "model.backbone.stem_channels": 4,
            "model.neck.in_channels": 32,
            "model.head.loss.pseudo_labels.num_classes": 8,
            "model.head.loss.latent_after": 1,
            "train_dataloader.batch_size": 16,
            "train_dataloader.dataset.indices": 64,
            "train_cfg.max_epochs": 1,
            "default_hooks.latent_classes.interval": 2,
            **changes,
        }
    )
    if not hook:
        cfg.default_hooks.pop("latent_classes")
    cfg.experiment_name = uuid.uuid4().hex  # mmengine's own has a resolution of 1 s
    prepare(cfg, "train")
    return cfg


def configure(work_dir, **changes):
    return Runner.from_cfg(settings(work_dir, **changes))


def trained(work_dir, shuffle=False, **changes):
    runner = configure(work_dir, **changes)
    if shuffle:
        dataset = runner.train_dataloader.dataset
        plain = type(dataset).get_data_info

        def wrong_label(index):
            info = plain(dataset, index)
            return {**info, "gt_label": (info["gt_label"] + index) % 10}

        dataset.get_data_info = wrong_label
    runner.train()
    return runner


def same(first, second):
    states = first.model.state_dict(), second.model.state_dict()
    assert states[0].keys() == states[1].keys()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("teacher", [None, 0.1])
def test_shuffled_labels_give_the_same_weights(tmp_path, teacher):
    changes = {"model.teacher_momentum": teacher}
    first = trained(tmp_path / "a", **changes)
    second = trained(tmp_path / "b", shuffle=True, **changes)
    assert same(first, second)
    loss = first.model.head.loss_module
    assert loss.pseudo_labels.calls == 4
    assert loss.latent_loss.centroids.counts.sum() == 4 * 32


def test_the_labels_were_shuffled_where_that_matters(tmp_path):
    """The same trick changes a run that does read labels."""
    first = trained(tmp_path / "a", hook=False, **SUPERVISED)
    second = trained(tmp_path / "b", shuffle=True, hook=False, **SUPERVISED)
    assert not same(first, second)


def test_the_teacher_follows_and_is_saved(tmp_path):
    runner = trained(tmp_path, **{"model.teacher_momentum": 0.1})
    model = runner.model
    student = dict(model.encoder.named_parameters())
    for name, value in model.teacher.module.named_parameters():
        assert not value.requires_grad
        assert not torch.equal(value, student[name])
        assert torch.nn.functional.mse_loss(value, student[name]) < 0.1
    assert any(key.startswith("teacher.module.") for key in model.state_dict())


def log_of(work_dir):
    return "".join(path.read_text() for path in sorted(Path(work_dir).glob("*/*.log")))


def test_measures_and_terms_are_logged(tmp_path):
    runner = trained(tmp_path, **{"default_hooks.logger.interval": 2})
    (path,) = tmp_path.glob("*/vis_data/scalars.json")
    text = path.read_text()
    for name in ("varcon/latent_used", "varcon/latent_agreement", "latent_nll", "kl"):
        assert f'"{name}"' in text
    assert runner.iter == 4


def test_a_run_that_collapses_is_warned_of_once(tmp_path):
    """A learning rate of 0 on constant images: every view is one point."""
    runner = configure(
        tmp_path,
        **{
            "optim_wrapper.optimizer.lr": 0.0,
            "default_hooks.latent_classes": {
                "type": "LatentClassesHook",
                "interval": 1,
                "patience": 2,
            },
        },
    )
    runner.model.embed = lambda views: torch.ones(32, 64, requires_grad=True)
    runner.train()
    assert log_of(tmp_path).count("one_latent_class: 100% of a batch") == 1


def test_too_many_classes_are_told_before_training(tmp_path):
    runner = configure(tmp_path, **{"model.head.loss.pseudo_labels.num_classes": 40})
    with pytest.raises(ValueError, match="got 40 classes with 32 embeddings"):
        runner.train()
    assert runner.iter == 0


def test_the_check_before_a_run_knows_latent_classes(tmp_path, monkeypatch):
    key = "model.head.loss.pseudo_labels"
    changes = {"model.teacher_momentum": 0.1}
    flight = preflight(settings(tmp_path, **changes), "train")  # 8 classes, 10 digits
    assert flight.model.head.loss_module.pseudo_labels.calls == 0
    too_many = settings(tmp_path, **{f"{key}.num_classes": 40})
    with pytest.raises(ConfigError, match=r"model.head.loss: .* 40 classes with 32"):
        preflight(too_many, "train")
    monkeypatch.setenv("VARCON_PROCESSES", "2")
    preflight(too_many, "train")
    with pytest.raises(ConfigError, match=r"pseudo_labels.dim: 32, .* 64 dimensions"):
        preflight(settings(tmp_path, **{f"{key}.dim": 32}), "train")


def test_one_view_is_told_before_training(tmp_path):
    runner = configure(tmp_path, **{"default_hooks.latent_classes.views": 1})
    with pytest.raises(ValueError, match="views must be at least 2"):
        runner.train()


def test_a_teacher_without_pupils_is_told(tmp_path):
    alone = {
        "model.teacher_momentum": 0.1,
        "model.head.loss": {"_delete_": True, "type": "SelfSupervisedVarConLoss"},
    }
    with pytest.raises(ValueError, match="teacher_momentum makes a teacher for"):
        configure(tmp_path, **alone)
    with pytest.raises(ValueError, match=r"teacher_momentum must be in \(0, 1\]"):
        configure(tmp_path, **{"model.teacher_momentum": 0.0})


def test_the_hook_needs_its_loss(tmp_path):
    runner = configure(tmp_path, **SUPERVISED)
    with pytest.raises(ValueError, match="needs a SelfSupervisedVarConLoss"):
        runner.train()
