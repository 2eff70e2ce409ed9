"""The reference of the site shows every public name of the package."""

import importlib
import pkgutil
import re
from typing import Any

import pytest
from paths import REPO

import varcon_plugin

PAGES = sorted((REPO / "docs" / "reference").glob("*.md"))
SHOWN = [
    name
    for page in PAGES
    for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
]
MODULES = [
    module.name
    for module in pkgutil.walk_packages(varcon_plugin.__path__, "varcon_plugin.")
    if not module.name.rpartition(".")[2].startswith("_")
]


def public(module: str) -> list[tuple[str, Any]]:
    """The names in ``__all__``, with what they stand for."""
    found = importlib.import_module(module)
    return [(name, getattr(found, name)) for name in getattr(found, "__all__", ())]


@pytest.fixture(scope="module")
def on_the_site() -> list[tuple[str, Any]]:
    """Names that the pages show, one by one or as the public names of a module."""
    single = [name.rpartition(".") for name in SHOWN if name not in MODULES]
    shown = [pair for name in SHOWN if name in MODULES for pair in public(name)]
    for module, _, name in single:
        shown.append((name, getattr(importlib.import_module(module), name)))
    return shown


@pytest.mark.parametrize("module", ["varcon_plugin", *MODULES])
def test_public_names_are_in_the_reference(module, on_the_site):
    missing = [
        name
        for name, value in public(module)
        if not any(name == other and value is shown for other, shown in on_the_site)
    ]
    assert missing == []


def test_nothing_is_shown_twice():
    assert sorted(SHOWN) == sorted(set(SHOWN))


def test_every_reference_page_is_in_the_navigation():
    navigation = (REPO / "mkdocs.yml").read_text()
    assert [p.name for p in PAGES if f": reference/{p.name}\n" not in navigation] == []
