"""Views of several sizes."""

import torch

from varcon_plugin.training.micro_batches import in_micro_batches
from varcon_plugin.training.views import by_size, repeat_rows


def views():
    torch.manual_seed(0)
    return [torch.randn(4, 3, size, size) for size in (8, 8, 5, 5, 5)]


def test_each_size_is_a_batch():
    batches = by_size(views())
    assert [tuple(batch.shape) for batch in batches] == [(8, 3, 8, 8), (12, 3, 5, 5)]


def test_rows_come_in_the_order_of_the_views_with_and_without_micro_batches():
    expected = torch.cat([view.mean(dim=(2, 3)) for view in views()])
    for size in (None, 3):
        rows = in_micro_batches(lambda v: v.mean(dim=(2, 3)), views(), size, [])
        torch.testing.assert_close(rows, expected)


def test_rows_of_an_image_stand_for_its_other_views():
    rows = torch.arange(8.0)[:, None]  # two views of four images
    repeated = repeat_rows(rows, 20)[:, 0]
    assert (repeated % 4).tolist() == [*range(4)] * 5
    assert repeated[:8].tolist() == rows[:, 0].tolist()
