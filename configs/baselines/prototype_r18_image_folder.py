"""Prototype cross-entropy in place of VarCon: a small ResNet-18, a folder of images.

    python tools/train.py configs/baselines/prototype_r18_image_folder.py \
        --cfg-options train_dataloader.dataset.data_root=DATA

Everything but the loss is that of varcon_r18_image_folder.py. This is VarCon with
epsilon = 0, a one-hot target and therefore twice the weight on -log p: what VarCon
gains over it comes from its soft, adaptive target. DATA as in that recipe.
"""

_base_ = "../varcon_r18_image_folder.py"

model = dict(
    head=dict(
        _delete_=True,
        type="LossHead",
        loss=dict(type="PrototypeLoss", temperature=0.1),
    ),
)
# without the diagnostics, which watch VarCon's own terms
default_hooks = dict(
    _delete_=True,
    logger=dict(type="LoggerHook", interval=20),
    checkpoint=dict(type="CheckpointHook", interval=8),
    epoch_seed=dict(type="EpochSeedHook"),
)
