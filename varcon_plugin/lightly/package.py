"""Lightning comes as two packages whose classes do not mix."""

from __future__ import annotations

import sys

from varcon_plugin.caller import warn_caller

__all__ = ["say_which_lightning"]

OTHER = "lightning.pytorch"


def say_which_lightning(part: object) -> None:
    """Warn that ``part`` is for pytorch_lightning where `lightning` is imported too.

    The Trainer of the other package refuses it without saying why.
    """
    if OTHER in sys.modules:
        name = type(part).__name__
        warn_caller(
            f"{name} is a class of pytorch_lightning, on which lightly builds, and "
            f"{OTHER} is imported too: take Trainer from pytorch_lightning, that of "
            f"{OTHER} refuses {name}"
        )
