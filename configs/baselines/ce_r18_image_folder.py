"""Cross-entropy in place of VarCon: a small ResNet-18, a folder of images.

    python tools/train.py configs/baselines/ce_r18_image_folder.py \
        --cfg-options train_dataloader.dataset.data_root=DATA

Everything but the loss is that of varcon_r18_image_folder.py. A linear classifier sits
on the pooled features of the backbone, without projection, as is customary; both views
of an image are classified. DATA as in that recipe. For another number of classes than
10 add model.head.num_classes=N.
"""

_base_ = "../varcon_r18_image_folder.py"

model = dict(
    neck=dict(_delete_=True, type="GlobalAveragePooling"),
    head=dict(
        _delete_=True,
        type="ClassifierHead",
        num_classes=10,
        in_channels=128,
        loss=dict(type="CrossEntropyLoss"),
    ),
)
# without the diagnostics, which watch VarCon's own terms
default_hooks = dict(
    _delete_=True,
    logger=dict(type="LoggerHook", interval=20),
    checkpoint=dict(type="CheckpointHook", interval=8),
    epoch_seed=dict(type="EpochSeedHook"),
)
