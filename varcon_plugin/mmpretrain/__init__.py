"""VarCon for mmpretrain: importing this registers everything by name.

In a config: ``custom_imports = dict(imports=['varcon_plugin.mmpretrain'])``.
"""

from mmpretrain.registry import MODELS

from varcon_plugin.loss import VarConLoss
from varcon_plugin.mmpretrain.algorithm import VarCon
from varcon_plugin.mmpretrain.cpu import CPUDistributedDataParallel
from varcon_plugin.mmpretrain.datasets import Digits
from varcon_plugin.mmpretrain.head import VarConHead
from varcon_plugin.mmpretrain.hooks import (
    LabelCheckHook,
    PretrainedCheckHook,
)
from varcon_plugin.mmpretrain.knn_hook import KNNHook

MODELS.register_module(module=VarConLoss)

__all__ = [
    "CPUDistributedDataParallel",
    "Digits",
    "KNNHook",
    "LabelCheckHook",
    "PretrainedCheckHook",
    "VarCon",
    "VarConHead",
    "VarConLoss",
]
