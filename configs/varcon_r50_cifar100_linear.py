"""Linear evaluation of varcon_r50_cifar100.py, 100 epochs: the authors' protocol.

    bash tools/dist_train.sh configs/varcon_r50_cifar100_linear.py 8 \
        --cfg-options model.backbone.init_cfg.checkpoint=PATH/epoch_200.pth

Frozen backbone, features not normalised, 8 GPUs with 128 images each. Learning rate 5,
momentum 0.9, no weight decay, steps at epochs 60, 75 and 90 by 0.2, crops and flips:
the authors' code and the command in its README. They report the best test
accuracy of all epochs; read the last one here. Also for the baselines of this recipe.
Not run at full scale by us; the paper reports 78.29 % top-1.
"""

_base_ = [
    "mmpretrain::_base_/datasets/cifar100_bs16.py",
    "mmpretrain::_base_/default_runtime.py",
    "_base_/varcon_runtime.py",
]
custom_hooks = [dict(type="PretrainedCheckHook")]

model = dict(
    type="ImageClassifier",
    backbone=dict(
        type="ResNet_CIFAR",
        depth=50,
        zero_init_residual=False,
        frozen_stages=4,
        norm_eval=True,
        init_cfg=dict(type="Pretrained", checkpoint="", prefix="backbone."),
    ),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", num_classes=100, in_channels=2048, topk=(1, 5)),
)
train_pipeline = [
    dict(type="RandomResizedCrop", scale=32, crop_ratio_range=(0.2, 1.0)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackInputs"),
]
train_dataloader = dict(
    batch_size=128, num_workers=4, dataset=dict(pipeline=train_pipeline)
)
val_dataloader = dict(batch_size=128)
test_dataloader = dict(batch_size=128)
val_evaluator = dict(topk=(1, 5))
test_evaluator = dict(topk=(1, 5))

optim_wrapper = dict(optimizer=dict(type="SGD", lr=5.0, momentum=0.9, weight_decay=0.0))
param_scheduler = dict(type="MultiStepLR", milestones=[60, 75, 90], gamma=0.2)
train_cfg = dict(by_epoch=True, max_epochs=100)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(checkpoint=dict(interval=10, max_keep_ckpts=3))
auto_scale_lr = dict(base_batch_size=1024)
