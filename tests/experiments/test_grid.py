"""What is declared, and what of a recipe a cell changes."""

from dataclasses import replace
from pathlib import Path

import pytest
from mmengine.config import Config
from mmpretrain.registry import MODELS

from varcon_plugin.experiments.grid import BALANCED_BANK as BALANCED
from varcon_plugin.experiments.grid import EXPERIMENTS, SMALL, cells
from varcon_plugin.experiments.recipe import Place, cell_config, count_classes

ROOT = Path(__file__).parents[2]


@pytest.fixture
def place(tmp_path):
    return Place(root=ROOT, recipe="r18_digits", out=tmp_path)


def test_every_cell_of_every_experiment_has_its_config(place):
    for scales in EXPERIMENTS.values():
        for scale, experiment in scales.items():
            recipe = "r18_digits" if scale == SMALL else "r50_cifar100"
            here = Place(root=ROOT, recipe=recipe, out=place.out)
            grid = cells(experiment, [0, 1])
            assert len({cell.name for cell in grid}) == len(grid)
            assert grid[0].seed == grid[len(grid) // 2 - 1].seed == 0
            for cell in {cell.method.config: cell for cell in grid}.values():
                path = here.root / "configs" / cell.method.config
                assert Path(str(path).format(recipe=recipe)).is_file()


def test_the_learning_rate_follows_the_batch_size(place):
    recipe = Config.fromfile(ROOT / "configs/varcon_r18_digits.py")
    experiment = EXPERIMENTS["batch-size"][SMALL]
    for cell in cells(experiment, [3], [64]):
        cfg = cell_config(cell, place)
        assert cfg.train_dataloader.batch_size == 64
        base = recipe.auto_scale_lr.base_batch_size
        lr = recipe.optim_wrapper.optimizer.lr * 64 / base
        assert cfg.optim_wrapper.optimizer.lr == pytest.approx(lr)
        assert cfg.randomness.seed == 3


def test_methods_differ_in_what_they_say(place):
    first, *_ = cells(EXPERIMENTS["temperature"][SMALL], [0], [0.05])
    cfg = cell_config(first, place)
    assert cfg.model.head.loss.epsilon == 0.05
    assert cfg.train_dataloader.batch_size == 64  # declared for small data
    grid = cells(EXPERIMENTS["small-batch"][SMALL], [0], [32])
    losses = {c.method.name: cell_config(c, place).model.head.loss for c in grid}
    assert losses["VarCon, leave-one-out"].leave_one_out
    bank = losses["VarCon, momentum centroids"]
    assert bank.centroids.num_classes == 10
    assert bank.centroids.dim == 64
    assert "num_classes" not in bank


def test_a_recipe_with_a_bank_keeps_it_and_loses_it(tmp_path):
    place = Place(root=ROOT, recipe="speedrun_cifar100", out=tmp_path)
    grid = cells(EXPERIMENTS["losses"][SMALL], [0])
    heads = {c.method.name: cell_config(c, place).model.head for c in grid}
    assert "centroids" not in heads["VarCon"].loss
    recipe = Config.fromfile(ROOT / "configs/varcon_speedrun_cifar100.py")
    bank = heads["VarCon, momentum centroids"].loss.centroids
    assert bank == recipe.model.head.loss.centroids
    assert heads["SupCon"].loss.name == "SupConLoss"


def test_options_go_where_they_belong(tmp_path):
    place = Place(root=ROOT, recipe="speedrun_cifar10", out=tmp_path)
    slow = "VarCon, momentum centroids of a slow encoder"
    (cell,) = cells(EXPERIMENTS["losses"][SMALL], [0], None, [slow])
    cfg = cell_config(cell, place)
    assert cfg.model.ema_decay == 0.99
    assert cfg.model.head.loss.centroids.num_classes == 10
    grid = cells(EXPERIMENTS["gradient"][SMALL], [0])
    detached, flowing, left_out, clipped = (cell_config(c, place) for c in grid)
    assert "detach_centroids" not in detached.model.head.loss
    assert not flowing.model.head.loss.detach_centroids
    assert left_out.model.head.loss.leave_one_out
    assert clipped.optim_wrapper.clip_grad == {"max_norm": 1.0}
    for cfg in (detached, flowing, left_out, clipped):
        MODELS.build({**cfg.model, "data_preprocessor": cfg.data_preprocessor})


def test_balanced_batches_hold_as_many_classes_as_there_are(place):
    for size, classes, images in ((16, 8, 2), (64, 8, 8)):
        grid = cells(EXPERIMENTS["small-batch"][SMALL], [0], [size], [BALANCED.name])
        (cell,) = grid
        cfg = cell_config(cell, place)
        assert cfg.train_dataloader.batch_size == size
        assert cfg.train_dataloader.sampler == {
            "type": "ClassBalancedSampler",
            "classes_per_batch": classes,
            "images_per_class": images,
        }
        assert cfg.model.head.loss.centroids.type == "MomentumCentroids"


def test_a_learning_rate_is_a_factor_on_the_scaled_one(place):
    (cell,) = cells(EXPERIMENTS["small-batch"][SMALL], [0], [32], ["SupCon"])
    plain = cell_config(cell, place)
    faster = replace(cell, learning_rate=3.0)
    assert cell.name == "supcon_32_seed0"
    assert faster.name == "supcon_32_seed0_lr3"
    rate = cell_config(faster, place).optim_wrapper.optimizer.lr
    assert rate == pytest.approx(3 * plain.optim_wrapper.optimizer.lr)


def test_a_shorter_run_keeps_the_shape_of_its_schedule(tmp_path):
    place = Place(root=ROOT, recipe="r18_digits", out=tmp_path, epochs=10)
    cfg = cell_config(cells(EXPERIMENTS["convergence"][SMALL], [0])[0], place)
    warmup, cosine = cfg.param_scheduler  # 2 and 20 epochs in the recipe
    assert (warmup["end"], cosine["begin"], cosine["end"]) == (1, 1, 10)
    assert cfg.train_cfg.max_epochs == 10


def test_mistakes_are_told(place, tmp_path):
    with pytest.raises(ValueError, match=r"settings must be of 0, 0\.01, 0\.02, 0\.05"):
        cells(EXPERIMENTS["temperature"][SMALL], [0], [0.3])
    with pytest.raises(ValueError, match="methods must be of VarCon; SupCon, got Moco"):
        cells(EXPERIMENTS["batch-size"][SMALL], [0], None, ["Moco"])
    grid = cells(EXPERIMENTS["small-batch"][SMALL], [0], [30], [BALANCED.name])
    with pytest.raises(ValueError, match=r"multiple of 4, .* got 30"):
        cell_config(grid[0], place)
    cell = cells(EXPERIMENTS["batch-size"][SMALL], [0], [63])[0]
    two = Place(root=ROOT, recipe="r18_digits", out=tmp_path, processes=2)
    with pytest.raises(ValueError, match="63 does not divide by 2 processes"):
        cell_config(cell, two)
    nowhere = Place(root=ROOT, recipe="r9_digits", out=tmp_path)
    with pytest.raises(ValueError, match=r"recipe r9_digits has no .*varcon_r9_digits"):
        cell_config(cell, nowhere)
    with pytest.raises(ValueError, match=r"image folder not found: .*/train"):
        count_classes(tmp_path)
