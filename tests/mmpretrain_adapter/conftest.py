import uuid

import numpy as np
import pytest
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from PIL import Image

import varcon_plugin.mmpretrain  # noqa: F401  registers everything


@pytest.fixture(scope="session", autouse=True)
def default_scope():
    init_default_scope("mmpretrain")


@pytest.fixture(autouse=True)
def _names_of_runs(monkeypatch):
    """Each run has a name of its own; mmengine's has a resolution of a second."""
    setup_env = Runner.setup_env

    def with_name(runner, env_cfg):
        setup_env(runner, env_cfg)
        runner._timestamp += f"_{uuid.uuid4().hex}"

    monkeypatch.setattr(Runner, "setup_env", with_name)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """Eight JPEGs of two classes: train/<class>/*.JPEG and the same in val."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("n01", "n02"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(4):
                coarse = random.integers(0, 256, (8, 10, 3), dtype=np.uint8)
                image = Image.fromarray(coarse).resize((320, 256), Image.BICUBIC)
                image.save(folder / f"{index}.JPEG")
    return root
