"""Where things are, for tests that run the project's files."""

from pathlib import Path

REPO = Path(__file__).parents[1]
