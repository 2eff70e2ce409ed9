"""Linear evaluation of varcon_r18_digits.py on the held-out digits, 10 epochs.

    bash tools/dist_train.sh configs/varcon_r18_digits_linear.py 2 \
        --cfg-options model.backbone.init_cfg.checkpoint=PATH/epoch_20.pth
    bash tools/dist_test.sh configs/varcon_r18_digits_linear.py CHECKPOINT 2

Frozen backbone, a few seconds on two CPU cores; every number here is ours.
"""

_base_ = "varcon_r18_digits.py"
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
        num_classes=10,
        in_channels=128,
        topk=(1,),
    ),
)
data_preprocessor = dict(_delete_=True, mean=[127.5] * 3, std=[127.5] * 3)

pipeline = [dict(type="Resize", scale=16), dict(type="PackInputs")]
train_dataloader = dict(dataset=dict(pipeline=pipeline))
val_dataloader = dict(
    batch_size=128,
    num_workers=0,
    persistent_workers=False,
    pin_memory=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="Digits", split="test", pipeline=pipeline),
)
val_evaluator = dict(type="Accuracy", topk=(1,))
test_dataloader = val_dataloader
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(lr=0.3, weight_decay=0.0))
param_scheduler = dict(
    _delete_=True, type="CosineAnnealingLR", end=10, convert_to_iter_based=True
)
train_cfg = dict(max_epochs=10)
val_cfg = dict()
test_cfg = dict()
