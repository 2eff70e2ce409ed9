"""Test a model: mmpretrain's tools/test.py and its flags, on GPUs or on the CPU.

    varcon test CONFIG CHECKPOINT [--gpus N] [flags]

CONFIG is a path or the name of a recipe. --gpus N starts N processes. All other flags
are those of tools/test.py; --check only checks.
"""

from __future__ import annotations

from varcon_plugin.commands.train import launch

__all__ = ["main"]


def main() -> None:
    """Test what the command line names."""
    launch("test", __doc__)
