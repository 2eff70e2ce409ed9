"""SupCon in place of VarCon: a small ResNet-18, a folder of images.

    python tools/train.py configs/baselines/supcon_r18_image_folder.py \
        --cfg-options train_dataloader.dataset.data_root=DATA

Everything but the loss is that of varcon_r18_image_folder.py. Temperature 0.1: SupCon's
and VarCon's papers. The loss is pytorch-metric-learning's, a mean over samples; the
authors' code multiplies it by 0.1 / 0.07. The learning rate is VarCon's, whose gradient
starts out up to twice as large: tune it with --cfg-options
optim_wrapper.optimizer.lr=LR before drawing conclusions. DATA as in that recipe.
"""

_base_ = "../varcon_r18_image_folder.py"

model = dict(
    head=dict(
        _delete_=True,
        type="LossHead",
        loss=dict(type="MetricLearningLoss", name="SupConLoss", temperature=0.1),
    ),
)
# without the diagnostics, which watch VarCon's own terms
default_hooks = dict(
    _delete_=True,
    logger=dict(type="LoggerHook", interval=20),
    checkpoint=dict(type="CheckpointHook", interval=8),
    epoch_seed=dict(type="EpochSeedHook"),
)
