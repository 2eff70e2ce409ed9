"""The model index lists every recipe, as it is."""

import re
from pathlib import Path

import yaml
from mmengine.config import Config
from paths import REPO

INDEX = yaml.safe_load((REPO / "model-index.yml").read_text())
MODELS = [
    model
    for name in INDEX["Import"]
    for model in yaml.safe_load((REPO / name).read_text())["Models"]
]


def processes(name):
    """What the command in the docstring of a recipe starts."""
    if re.search("1gpu|image_folder|speedrun", name):
        return 1
    return 2 if "digits" in name else 8


def test_every_recipe_is_listed_once():
    files = [*(REPO / "configs").glob("*.py"), *(REPO / "configs/baselines").glob("*")]
    expected = sorted(str(path.relative_to(REPO)) for path in files if path.is_file())
    assert sorted(model["Config"] for model in MODELS) == expected
    assert all(Path(model["Config"]).stem == model["Name"] for model in MODELS)


def test_batch_and_epochs_are_those_of_the_recipe_and_its_command():
    for model in MODELS:
        cfg = Config.fromfile(REPO / model["Config"])
        count = processes(model["Name"])
        text = (REPO / model["Config"]).read_text()
        command = f"{model['Config']} {count}" if count > 1 else model["Config"]
        assert command in text, model["Name"]
        batch = count * cfg.train_dataloader.batch_size
        assert batch == cfg.auto_scale_lr.base_batch_size, model["Name"]
        assert model["Metadata"]["Batch Size"] == batch
        assert model["Metadata"]["Epochs"] == cfg.train_cfg.max_epochs


def test_the_table_names_every_recipe():
    table = (REPO / "configs/README.md").read_text()
    for path in (REPO / "configs").glob("*.py"):
        assert f"]({path.name})" in table, path.name
