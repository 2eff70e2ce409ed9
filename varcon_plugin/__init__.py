"""VarCon: Variational Supervised Contrastive Learning (arXiv 2506.07413).

Importing this loads torch and nothing else; the adapters are `varcon_plugin.mmpretrain`
and `varcon_plugin.lightly`.
"""

import sys

from varcon_plugin._moved import MovedModules
from varcon_plugin.functional import VarConTerms, varcon_terms
from varcon_plugin.fused import fused_varcon_terms
from varcon_plugin.loss import VarConLoss
from varcon_plugin.momentum import MomentumCentroids
from varcon_plugin.pseudo_labels import PseudoLabels
from varcon_plugin.self_supervised import SelfSupervisedVarConLoss

__all__ = [
    "MomentumCentroids",
    "PseudoLabels",
    "SelfSupervisedVarConLoss",
    "VarConLoss",
    "VarConTerms",
    "fused_varcon_terms",
    "varcon_terms",
]
__version__ = "0.2.0"

if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
    sys.meta_path.insert(0, MovedModules())
