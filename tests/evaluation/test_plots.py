"""Pictures keep to what a percentage can be, and show each curve."""

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from varcon_plugin.evaluation.plots import draw_few_shot


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))
    return figures


def results(shots, interval):
    return [
        {"classifier": name, "shots": n, "mean": 50, "interval": interval,
         "draws": (40, 60)}
        for name in ("nearest-mean", "logistic")
        for n in shots
    ]  # fmt: skip


@pytest.mark.parametrize("shots", [(1,), (1, 5, 20)])
def test_two_draws_do_not_take_the_axis_below_zero(shots, drawn, tmp_path):
    draw_few_shot(results(shots, interval=127.06), tmp_path / "few_shot.png")
    (axes,) = drawn[0].axes
    assert isinstance(axes, Axes)
    low, high = axes.get_ylim()
    assert -3 < low <= 0
    assert 100 <= high < 103
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == [str(n) for n in shots]


def test_intervals_of_two_classifiers_stand_side_by_side(drawn, tmp_path):
    draw_few_shot(results((1, 5), interval=3), tmp_path / "few_shot.png")
    (axes,) = drawn[0].axes
    first, second = (container[0].get_xdata() for container in axes.containers)
    assert not set(first) & set(second)
