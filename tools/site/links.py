"""Lets pages of the site link to files of the project beside ``docs``.

configs/README.md becomes the page "recipes"; other files are copied into the site, and
README.md is its first page.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

OUTSIDE = re.compile(r"\]\((?:\.\./)+([^)#]*)(#[^)]*)?\)")
ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "configs" / "README.md"
PAGES = {  # of the project: page of the site
    "README.md": "index.md",
    "configs": "recipes.md",
    "configs/": "recipes.md",
    "configs/README.md": "recipes.md",
}


def on_files(files: Files, config: Any) -> Files:
    """Add the list of recipes and every file that a page links to."""
    files.append(File.generated(config, "recipes.md", content=recipes()))
    for page in [file for file in files if file.is_documentation_page()]:
        for target, _ in OUTSIDE.findall(page.content_string):
            uri, source = f"files/{target}", ROOT / target
            if target in PAGES or uri in files.src_uris or not source.is_file():
                continue
            files.append(File.generated(config, uri, abs_src_path=str(source)))
    return files


def recipes() -> str:
    """configs/README.md, with links as they are from ``docs``."""
    text = RECIPES.read_text()
    text = re.sub(r"\]\((?!\.\./|https?:|#)", "](../configs/", text)
    return text.replace("](../docs/", "](")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links that leave ``docs`` into links to the copies."""
    here = posixpath.dirname(page.file.src_uri)

    def inside(found: re.Match[str]) -> str:
        target, anchor = found.groups()
        uri = PAGES.get(target, f"files/{target}")
        return f"]({posixpath.relpath(uri, here or '.')}{anchor or ''})"

    return OUTSIDE.sub(inside, markdown)
