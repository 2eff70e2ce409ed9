"""VarCon for mmpretrain: importing this registers everything by name.

In a config: ``custom_imports = dict(imports=['varcon_plugin.mmpretrain'])``.
"""

from mmpretrain.registry import MODELS, OPTIMIZERS

from varcon_plugin.loss import VarConLoss
from varcon_plugin.mmpretrain.algorithm import VarCon
from varcon_plugin.mmpretrain.backbone import TIMMEncoder
from varcon_plugin.mmpretrain.baselines import ClassifierHead, LossHead
from varcon_plugin.mmpretrain.check_hooks import LabelCheckHook, PretrainedCheckHook
from varcon_plugin.mmpretrain.checkpoints import read_as_data
from varcon_plugin.mmpretrain.cpu import CPUDistributedDataParallel
from varcon_plugin.mmpretrain.data_preprocessor import BatchAugmentDataPreprocessor
from varcon_plugin.mmpretrain.datasets import Digits, ImageFolder
from varcon_plugin.mmpretrain.diagnostics_hook import VarConDiagnosticsHook
from varcon_plugin.mmpretrain.durable_checkpoints import DurableCheckpointHook
from varcon_plugin.mmpretrain.epoch_seed_hook import EpochSeedHook
from varcon_plugin.mmpretrain.finite_hook import FiniteLossHook
from varcon_plugin.mmpretrain.head import VarConHead
from varcon_plugin.mmpretrain.knn_hook import KNNHook
from varcon_plugin.mmpretrain.latent_classes_hook import LatentClassesHook
from varcon_plugin.mmpretrain.samplers import ClassBalancedSampler
from varcon_plugin.mmpretrain.self_supervised import VarConSSL, VarConSSLHead
from varcon_plugin.mmpretrain.sharded_runner import ShardedRunner
from varcon_plugin.mmpretrain.speed import (
    BFloat16OptimWrapper,
    CompileHook,
    PrefetchHook,
)
from varcon_plugin.mmpretrain.speedrun import SpeedrunNet
from varcon_plugin.mmpretrain.stopping import ResumableEpochLoop, StopHook
from varcon_plugin.mmpretrain.two_crops import LoadImage, TwoCrops
from varcon_plugin.momentum import MomentumCentroids
from varcon_plugin.pseudo_labels import PseudoLabels
from varcon_plugin.self_supervised import SelfSupervisedVarConLoss
from varcon_plugin.training.baselines import MetricLearningLoss, PrototypeLoss
from varcon_plugin.training.lars import ForeachLARS

for module in (
    VarConLoss,
    MomentumCentroids,
    SelfSupervisedVarConLoss,
    PseudoLabels,
    MetricLearningLoss,
    PrototypeLoss,
):
    MODELS.register_module(module=module)
OPTIMIZERS.register_module(module=ForeachLARS)
read_as_data()

__all__ = [
    "BFloat16OptimWrapper",
    "BatchAugmentDataPreprocessor",
    "CPUDistributedDataParallel",
    "ClassBalancedSampler",
    "ClassifierHead",
    "CompileHook",
    "Digits",
    "DurableCheckpointHook",
    "EpochSeedHook",
    "FiniteLossHook",
    "ForeachLARS",
    "ImageFolder",
    "KNNHook",
    "LabelCheckHook",
    "LatentClassesHook",
    "LoadImage",
    "LossHead",
    "MetricLearningLoss",
    "MomentumCentroids",
    "PrefetchHook",
    "PretrainedCheckHook",
    "PrototypeLoss",
    "PseudoLabels",
    "ResumableEpochLoop",
    "SelfSupervisedVarConLoss",
    "ShardedRunner",
    "SpeedrunNet",
    "StopHook",
    "TIMMEncoder",
    "TwoCrops",
    "VarCon",
    "VarConDiagnosticsHook",
    "VarConHead",
    "VarConLoss",
    "VarConSSL",
    "VarConSSLHead",
]
