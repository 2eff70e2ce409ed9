"""Linear evaluation of varcon_r18_image_folder.py on its test images, 10 epochs.

    python tools/train.py configs/varcon_r18_image_folder_linear.py --cfg-options \
        model.backbone.init_cfg.checkpoint=PATH/epoch_8.pth \
        train_dataloader.dataset.data_root=DATA val_dataloader.dataset.data_root=DATA

DATA/train/CLASS/* and DATA/val/CLASS/* (or test), up to 1,000 classes: with fewer, the
other outputs of the classifier stay unused. Frozen backbone; every number is ours.
tools/evaluate.py fits such a classifier in less time, and more; this one is for those
who want mmpretrain's curves, or to fine-tune (backbone.frozen_stages=-1).
"""

_base_ = "_base_/varcon_r18_folder.py"
custom_hooks = [dict(type="PretrainedCheckHook")]

model = dict(
    type="ImageClassifier",
    backbone=dict(
        frozen_stages=4,
        init_cfg=dict(type="Pretrained", checkpoint="", prefix="backbone."),
    ),
    neck=dict(_delete_=True, type="GlobalAveragePooling"),
    head=dict(
        _delete_=True,
        type="LinearClsHead",
        num_classes=1000,
        in_channels=128,
        topk=(1,),
    ),
)
data_preprocessor = dict(_delete_=True, mean=[127.5] * 3, std=[63.75] * 3, to_rgb=True)

train_pipeline = [
    dict(type="LoadImage"),
    dict(type="Resize", scale=(32, 32)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackInputs"),
]
test_pipeline = [
    dict(type="LoadImage", max_corrupt=0),
    dict(type="Resize", scale=(32, 32)),
    dict(type="PackInputs"),
]
train_dataloader = dict(
    num_workers=1, persistent_workers=True, dataset=dict(pipeline=train_pipeline)
)
val_dataloader = dict(
    batch_size=128,
    num_workers=1,
    persistent_workers=True,
    pin_memory=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="ImageFolder",
        data_root="data/images",
        split="val",
        pipeline=test_pipeline,
    ),
)
val_evaluator = dict(type="Accuracy", topk=(1,))
test_dataloader = val_dataloader
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(lr=0.3, weight_decay=0.0))
param_scheduler = dict(type="CosineAnnealingLR", end=10, convert_to_iter_based=True)
train_cfg = dict(by_epoch=True, max_epochs=10)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(checkpoint=dict(interval=10))
