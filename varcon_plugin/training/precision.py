"""Where arithmetic in bfloat16 is faster than in float32."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["has_bfloat16"]


def has_bfloat16(device: str | torch.device) -> bool:
    """Whether a device multiplies matrices of bfloat16 in hardware.

    A CPU does with AVX512-BF16 or AMX, a GPU of NVIDIA from compute capability 8.0.
    Other CPUs compute in bfloat16 too, through float32 and slower than in it.
    """
    kind = torch.device(device).type
    if kind == "cpu":
        cpu: Any = torch.cpu  # its look-ups are untyped
        return bool(cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return False
