"""bfloat16 only where the hardware computes in it."""

import pytest
import torch

from varcon_plugin.training.precision import has_bfloat16

SETS = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


@pytest.mark.parametrize(
    "name", ["_is_avx512_bf16_supported", "_is_amx_tile_supported"]
)
def test_a_cpu_has_it_with_either_instruction_set(name, monkeypatch):
    for other in SETS:
        monkeypatch.setattr(torch.cpu, other, lambda: False)
    assert not has_bfloat16("cpu")
    monkeypatch.setattr(torch.cpu, name, lambda: True)
    assert has_bfloat16("cpu")


def test_a_device_that_is_not_known_has_not():
    assert not has_bfloat16("mps")
