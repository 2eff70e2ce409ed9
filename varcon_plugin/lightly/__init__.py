"""VarCon for lightly (https://docs.lightly.ai): the loss and a LightningModule."""

from varcon_plugin.lightly.loss import VarConLoss
from varcon_plugin.lightly.module import VarCon, transform

__all__ = ["VarCon", "VarConLoss", "transform"]
