"""When a run whose loss is not finite is ended."""

import pytest
import torch
from torch import nn

from varcon_plugin.health.finite import (
    FiniteGuard,
    LossNotFiniteError,
    finite_weights,
)


def last_good_step(losses, *, scaled):
    """The step at which the run ends, None if it does not."""
    guard = FiniteGuard()
    for step, loss in enumerate(losses, 1):
        try:
            guard.step(torch.tensor(loss), step, scaled=scaled, checkpoint=lambda: "")
        except LossNotFiniteError:
            return step
    return None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_stays_bad_ends_the_run_within_ten_steps(bad):
    assert last_good_step([1.0] * 13 + [bad] * 30, scaled=False) == 20
    assert last_good_step([1.0] * 13 + [bad] * 30, scaled=True) == 40
    assert last_good_step([1.0, bad] * 30 + [1.0] * 10, scaled=True) is None
    assert last_good_step([bad] * 9 + [1.0] * 30, scaled=False) is None


def test_weights_are_looked_at_and_the_message_says_where_good_ones_are():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    finite_weights(model, lambda: "")
    finite_weights(nn.Identity(), lambda: "")
    with torch.no_grad():
        model[1].bias.fill_(float("nan"))
    with pytest.raises(LossNotFiniteError, match=r"1 of 4 weights .* 1\.bias .*a/b.pt"):
        finite_weights(model, lambda: "a/b.pt")
