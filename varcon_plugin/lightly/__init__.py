"""VarCon for lightly (https://docs.lightly.ai): the loss and a LightningModule."""

from varcon_plugin.lightly.batch_augment import (
    AugmentOnDevice,
    EpochSeed,
    SimCLRBatchTransform,
)
from varcon_plugin.lightly.diagnostics_callback import VarConDiagnosticsCallback
from varcon_plugin.lightly.finite_callback import FiniteLossCallback
from varcon_plugin.lightly.loss import VarConLoss
from varcon_plugin.lightly.module import VarCon, transform
from varcon_plugin.lightly.self_supervised import VarConSSL
from varcon_plugin.lightly.sharded_strategy import ShardedBankStrategy

__all__ = [
    "AugmentOnDevice",
    "EpochSeed",
    "FiniteLossCallback",
    "ShardedBankStrategy",
    "SimCLRBatchTransform",
    "VarCon",
    "VarConDiagnosticsCallback",
    "VarConLoss",
    "VarConSSL",
    "transform",
]
