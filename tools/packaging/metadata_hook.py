"""The package's description: README.md with links that work on a package index.

An index shows the description without the repository around it. Where REPOSITORY_URL is
set, as the release workflow does, relative links and pictures lead to the files of the
version's tag there, and the address is among the project's. Elsewhere, links stay.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)]+)\)")


class DescriptionHook(MetadataHookInterface):
    """Sets ``readme`` and ``urls``."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Called by hatchling at every build."""
        text = (Path(self.root) / "README.md").read_text()
        urls = {"Paper": "https://arxiv.org/abs/2506.07413"}
        repository = os.environ.get("REPOSITORY_URL", "").rstrip("/")
        if repository:
            tag = f"v{metadata['version']}"
            text = RELATIVE.sub(lambda found: absolute(found, repository, tag), text)
            urls |= {
                "Repository": repository,
                "Documentation": f"{repository}/tree/{tag}/docs",
                "Changelog": f"{repository}/blob/{tag}/CHANGELOG.md",
                "Issues": f"{repository}/issues",
            }
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        metadata["urls"] = urls


def absolute(link: re.Match[str], repository: str, tag: str) -> str:
    """A link or picture of the README, at the version's tag."""
    picture, text, target = link.groups()
    kind = "raw" if picture else "blob"
    return f"{picture}[{text}]({repository}/{kind}/{tag}/{target})"
