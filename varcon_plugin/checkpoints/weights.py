"""Weights from a file into an encoder, all of them or an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from varcon_plugin.checkpoints.reading import CheckpointError, load_state_dict, mismatch

__all__ = ["fill", "read_weights"]


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name of a safetensors file or of any other checkpoint.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: as `load_state_dict`, or a damaged safetensors file.
    """
    if path.suffix == ".safetensors" and path.is_file():
        from safetensors.torch import load_file  # of the eval extra

        try:
            return load_file(path)
        except Exception as error:  # a class of its own for each fault
            raise CheckpointError(f"{path} is damaged: {error}") from error
    return load_state_dict(path)


def fill(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    source: str,
    what: str = "backbone",
) -> None:
    """Load ``weights`` into ``module``, under whatever prefix fits most of them.

    A checkpoint may hold more, such as a head, but not in the parts that ``module`` has
    weights in: those of a deeper network would leave some of it out.

    Args:
        module: gets the weights; without a classifier.
        weights: by name.
        source: of the weights, for the message.
        what: ``module`` is, for the message.

    Raises:
        ValueError: weights of ``module`` are missing, of another shape, or too many;
            the message lists them.
    """
    own = {
        name: tensor
        for name, tensor in module.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    prefix = best_prefix(list(own), list(weights))
    found = {
        name.removeprefix(prefix): tensor
        for name, tensor in weights.items()
        if name.startswith(prefix)
    }
    parts = {name.split(".")[0] for name in own}
    unexpected = [
        name
        for name in found
        if name.split(".")[0] in parts
        and name not in own
        and not name.endswith("num_batches_tracked")
    ]
    wrong = mismatch(own, found, unexpected)
    if wrong:
        raise ValueError(
            f"{source} does not fill the {what} ({len(own)} weights, looked for "
            f"under the prefix {prefix!r}); {wrong}"
        )
    module.load_state_dict({name: found[name] for name in own}, strict=False)


def best_prefix(own: Sequence[str], names: Sequence[str]) -> str:
    """What to put before the names of ``own`` to find most of them in ``names``.

    Among equals ``"backbone."``, then none, then the first: a momentum encoder comes
    second.
    """
    candidates = dict.fromkeys(("backbone.", ""))
    candidates |= dict.fromkeys(
        name.removesuffix(own[0]) for name in names if name.endswith(own[0])
    )
    present = set(names)
    return max(candidates, key=lambda p: sum(p + name in present for name in own))
