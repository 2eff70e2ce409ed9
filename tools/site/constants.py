"""Shows the constants in a module's ``__all__``, with the comment that explains them.

mkdocstrings leaves out what has no docstring, and constants have none.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

BESIDE = re.compile(r"^[^#\"']*(?:(?:\"[^\"]*\"|'[^']*')[^#\"']*)*# (.*)")


class Constants(griffe.Extension):
    """Gives public constants the comment beside or above them as their docstring."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Called once the package has been read."""
        modules = [pkg]
        while modules:
            module = modules.pop()
            members = [m for m in module.members.values() if not m.is_alias]
            modules += [m for m in members if isinstance(m, griffe.Module)]
            for member in members:
                if isinstance(member, griffe.Attribute) and member.is_public:
                    member.docstring = member.docstring or griffe.Docstring(
                        comment(module, member.lineno or 1), parent=member
                    )


def comment(module: griffe.Module, number: int) -> str:
    """What stands beside line ``number`` (from 1), or in the lines above it."""
    lines = module.source.splitlines()
    beside = BESIDE.match(lines[number - 1])
    if beside:
        return beside[1]
    above = number - 1
    while above and lines[above - 1].startswith("# "):
        above -= 1
    return " ".join(line[2:] for line in lines[above : number - 1]) or "A constant."
