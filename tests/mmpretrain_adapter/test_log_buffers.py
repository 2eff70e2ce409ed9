"""Log buffers in checkpoints of the original mmengine are read under torch >= 2.6."""

import pickle

import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner import checkpoint

from varcon_plugin.mmpretrain.log_buffers import allow_log_buffers, log_buffer_globals


@pytest.fixture
def safe_globals():
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield torch.serialization
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)


def test_what_mmengine_saves_is_restored(safe_globals, tmp_path):
    hub = MessageHub("saved")
    hub.update_scalar("train/loss", 3.0)
    hub.update_scalar("train/loss", 1.0)
    path = tmp_path / "epoch_1.pth"
    torch.save({"message_hub": hub.state_dict()}, path)
    with pytest.raises(pickle.UnpicklingError, match="HistoryBuffer"):
        torch.load(path, weights_only=True)
    safe_globals.add_safe_globals(log_buffer_globals())
    restored = MessageHub("restored")
    restored.load_state_dict(torch.load(path, weights_only=True)["message_hub"])
    buffer = restored.get_scalar("train/loss")
    assert isinstance(buffer, HistoryBuffer)
    assert buffer.statistics("mean") == 2


class Reaching:
    """Unpickles as an attribute of ``owner``."""

    def __init__(self, owner, name):
        self.owner, self.name = owner, name

    def __reduce__(self):
        return getattr, (self.owner, self.name)


@pytest.mark.parametrize(
    ("owner", "name"), [(HistoryBuffer, "__init__"), (torch.Tensor, "mean")]
)
def test_other_attributes_are_out_of_reach(safe_globals, tmp_path, owner, name):
    safe_globals.add_safe_globals(log_buffer_globals())
    path = tmp_path / "hostile.pth"
    torch.save({"x": Reaching(owner, name)}, path)
    with pytest.raises(pickle.UnpicklingError, match=f"refused: {name}"):
        torch.load(path, weights_only=True)


def test_the_list_is_touched_for_the_original_alone(safe_globals, monkeypatch):
    monkeypatch.setattr(checkpoint, "get_torch_safe_globals", list, raising=False)
    allow_log_buffers()
    assert safe_globals.get_safe_globals() == []
    monkeypatch.delattr(checkpoint, "get_torch_safe_globals")
    allow_log_buffers()
    assert HistoryBuffer in safe_globals.get_safe_globals()
