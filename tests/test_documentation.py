"""Every code block of README and docs is executed, checked, or marked as not.

Above a Python block stands ``<!-- run: torch -->`` (it is executed, with the names of
`context`, after those above it on the page), ``<!-- run: config BASE -->`` (it is a
config, alone or on top of BASE, and its model is built) or ``<!-- not run: WHY -->``.
Commands are not executed: their scripts, flags, recipes and targets have to exist.
"""

from __future__ import annotations

import functools
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from paths import REPO
from torch import nn

from varcon_plugin.commands.cli import COMMANDS
from varcon_plugin.commands.places import recipe_path

PAGES = [
    REPO / "README.md",
    REPO / "CONTRIBUTING.md",
    REPO / "configs" / "README.md",
    *sorted((REPO / "docs").glob("*.md")),
]
BLOCK = re.compile(
    r"(?:<!-- (?P<mark>(?:not )?run)(?:: (?P<how>[^>]*?))? -->\n+)?"
    r"^```(?P<language>\w*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
SHELL = ("", "bash", "sh", "console")
STARTS = ("python", "bash", "varcon", "make", "torchrun", "pip", "cd", "git", "mim")


class Block(NamedTuple):
    """A fenced block and the comment above it."""

    page: Path
    language: str
    code: str
    mark: str | None
    how: str

    @property
    def where(self) -> str:
        first = self.code.strip().splitlines()[0]
        return f"{self.page.name}: {first}"


def blocks() -> Iterator[Block]:
    for page in PAGES:
        for found in BLOCK.finditer(page.read_text()):
            yield Block(
                page,
                found["language"],
                found["code"],
                found["mark"],
                found["how"] or "",
            )


ALL = list(blocks())
PYTHON = [block for block in ALL if block.language == "python"]
COMMAND_LINES = [
    (block, line)
    for block in ALL
    if block.language in SHELL
    for line in block.code.replace("\\\n", " ").splitlines()
    if re.sub(r"^(\w+=\S+ )*", "", line).split(" ")[0] in STARTS
]


def test_python_blocks_are_marked():
    assert [b.where for b in PYTHON if b.mark is None] == []
    without_reason = [b.where for b in ALL if b.mark == "not run" and not b.how]
    assert without_reason == []


def context() -> dict[str, Any]:
    """Names that the executed blocks may use."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 16))
    views = [torch.randn(8, 3, 8, 8) for _ in range(2)]
    labels = torch.arange(8) % 4
    return {
        "torch": torch,
        "nn": nn,
        "Path": Path,
        "model": model,
        "views": views,
        "images": views[0],
        "labels": labels,
        "loader": [(views, labels)],
        "device": "cpu",
        "z0": model(views[0]),
        "z1": model(views[1]),
        "z": model(torch.cat(views)),
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_run(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = context()
    for block in PYTHON:
        if block.page == page and block.mark == "run" and block.how == "torch":
            exec(compile(block.code, block.where, "exec"), names)


CONFIGS = [b for b in PYTHON if b.mark == "run" and b.how.startswith("config")]


@pytest.mark.parametrize("block", CONFIGS, ids=lambda block: block.where)
def test_configs_build(block, tmp_path):
    init_default_scope("mmpretrain")
    base = block.how.removeprefix("config").strip()
    code = block.code
    if base:
        code = re.sub(r"^_base_ = .*\n", "", code)
        code = f"_base_ = {str(recipe_path(base))!r}\n{code}"
    path = tmp_path / "config.py"
    path.write_text(code)
    MODELS.build(Config.fromfile(path).model)


@functools.cache
def help_of(script: str, *words: str) -> str:
    """What ``script --help`` prints."""
    shown = StringIO()
    with (
        patch.object(sys, "argv", [script, *words, "--help"]),
        redirect_stdout(shown),
        suppress(SystemExit),
    ):
        runpy.run_path(script, run_name="__main__")
    return shown.getvalue()


@functools.cache
def help_of_command(name: str, *words: str) -> str:
    """What ``varcon name --help`` prints."""
    from varcon_plugin.commands.cli import run_command

    shown = StringIO()
    with (
        patch.object(sys, "argv", [name]),
        redirect_stdout(shown),
        suppress(SystemExit),
    ):
        run_command(f"varcon {name}", COMMANDS[name][0], [*words, "--help"])
    return shown.getvalue()


def check_flags(words: list[str], shown: str, line: str) -> None:
    for word in words:
        if word.startswith("--"):
            assert word.split("=")[0] in shown, f"no flag {word}: {line}"


@pytest.mark.parametrize(
    ("block", "line"), COMMAND_LINES, ids=[line[:60] for _, line in COMMAND_LINES]
)
def test_commands_exist(block, line):
    words = [w for w in shlex.split(line, comments=True) if not re.match(r"\w+=", w)]
    program = words.pop(0)
    if program == "make":
        targets = re.findall(r"^([\w.-]+):", (REPO / "Makefile").read_text(), re.M)
        assert words[0] in targets
        return
    if program == "varcon":
        name = words.pop(0)
        assert name in COMMANDS
        first = words[:1] if name == "benchmark" else []
        shown = help_of_command(name, *first)
        recipes = words[:1] if name in ("train", "test") else []
        for recipe in recipes:
            if recipe.islower() and not recipe.startswith("-") and "/" not in recipe:
                if (REPO / "examples" / "mmpretrain" / recipe).is_file():
                    continue
                recipe_path(recipe)
        check_flags(words, shown + "--gpus", line)
        return
    script = next((w for w in words if re.match(r"(tools|examples)/", w)), None)
    for word in words:
        if re.fullmatch(r"(configs|tools|examples)/\S+\.(py|sh)", word):
            assert (REPO / word).is_file(), line
    if script is None or script.endswith(".sh"):
        return
    after = words[words.index(script) + 1 :]
    if script.startswith("tools/"):
        check_flags(after, help_of(str(REPO / script)), line)
    else:
        source = (REPO / script).read_text()
        check_flags(after, source, line)
