"""Write the tables and pictures of docs/evidence.md from the results beside it.

    python tools/evidence.py [--docs docs]

DOCS/evidence/NAME.json holds the runs of a grid, as `run_experiment.py --keep` writes
them. Its table goes between the comments of that name in DOCS/evidence.md, its picture
to DOCS/images/evidence_NAME.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from varcon_plugin.commands.messages import fail
from varcon_plugin.experiments.evidence import draw, insert, read, table

__all__ = ["main"]


def main(argv: list[str] | None = None) -> None:
    """Read every file, then write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    docs = parser.parse_args(argv).docs
    files = sorted((docs / "evidence").glob("*.json"))
    if not files:
        fail(f"no results in {docs / 'evidence'}")
    try:
        page = (docs / "evidence.md").read_text()
        kept = {path.stem: read(path) for path in files}
        for name, content in kept.items():
            picture = f"![paired differences](images/evidence_{name}.png)"
            block = f"{content['about']}\n\n{table(content)}\n\n{picture}"
            page = insert(page, name, block)
    except (ValueError, FileNotFoundError) as error:
        fail(error)
    (docs / "images").mkdir(exist_ok=True)
    for name, content in kept.items():
        draw(content, name, docs / "images" / f"evidence_{name}.png")
    (docs / "evidence.md").write_text(page)
    print(f"{docs / 'evidence.md'}: {', '.join(kept)}")
