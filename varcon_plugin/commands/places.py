"""Where recipes and scripts are, in a clone and in an installed package."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

__all__ = ["project_root", "recipe_path"]

PACKAGE = Path(__file__).resolve().parents[1]


def project_root() -> Path:
    """The folder with ``configs`` and ``tools``: of the clone, or in the package."""
    installed = PACKAGE / ".mim"
    return installed if installed.is_dir() else PACKAGE.parent


def recipe_path(name: str) -> Path:
    """The config that ``name`` stands for.

    Args:
        name: a path, or the name of a recipe of ours with or without ``.py``, such as
            ``varcon_r50_imagenet`` or ``baselines/supcon_r50_imagenet``.

    Raises:
        FileNotFoundError: there is no such file, and no recipe of that name; the
            message lists names near it.
    """
    if Path(name).is_file():
        return Path(name)
    configs = project_root() / "configs"
    recipes = {
        str(path.relative_to(configs).with_suffix("")): path
        for path in sorted(configs.rglob("*.py"))
        if path.parent.name != "_base_"
    }
    wanted = name.removesuffix(".py")
    if wanted in recipes:
        return recipes[wanted]
    near = get_close_matches(wanted, recipes, 3) or list(recipes)
    raise FileNotFoundError(
        f"config not found: {name}; recipes near it: {', '.join(near)}"
    )
