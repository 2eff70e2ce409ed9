"""VarCon, ResNet-50, CIFAR-100, 200 epochs: the authors' run.

    bash tools/dist_train.sh configs/varcon_r50_cifar100.py 8

8 GPUs with 128 images (256 views) each; on fewer GPUs keep the batch of 1,024:
--cfg-options train_dataloader.batch_size=512 on 2, 1024 on 1. The data is downloaded to
data/cifar100. Not yet run at full scale by us; the paper reports 78.29 % top-1.

Where the numbers come from: the authors' code and the command in its README, but for
the learning rate. Their script averages over ranks a gradient that already is a share
of the global one, so it trains with 1/8 of the gradient of its loss. With momentum SGD
their lr 0.5 and weight decay 1e-4 on 8 GPUs are lr 0.5 / 8 = 0.0625 and weight decay
1e-4 * 8 = 8e-4 for the exact gradient, which is ours on any number of GPUs. Their
warm-up starts at 1/50 of the peak, their cosine ends at 1/1000 of it (theirs spans
epochs 0 to 200 and is entered at epoch 10, at 0.994 of the peak; ours spans epochs 10
to 200). BatchNorm normalises over each GPU's own 256 views, as in their command.
"""

_base_ = [
    "mmpretrain::_base_/datasets/cifar100_bs16.py",
    "mmpretrain::_base_/default_runtime.py",
    "_base_/varcon_runtime.py",
]

model = dict(
    type="VarCon",
    backbone=dict(type="ResNet_CIFAR", depth=50, zero_init_residual=False),
    neck=dict(
        type="MoCoV2Neck",  # Linear-ReLU-Linear, without BatchNorm
        in_channels=2048,
        hid_channels=2048,
        out_channels=128,
    ),
    head=dict(
        type="VarConHead",
        loss=dict(type="VarConLoss", temperature=0.1, epsilon=0.02, num_classes=100),
    ),
)

view_pipeline = [
    dict(type="RandomResizedCrop", scale=32, crop_ratio_range=(0.2, 1.0)),
    dict(type="RandomFlip", prob=0.5),
    dict(
        type="RandomApply",
        transforms=[
            dict(
                type="ColorJitter",
                brightness=0.4,
                contrast=0.4,
                saturation=0.4,
                hue=0.1,
            )
        ],
        prob=0.8,
    ),
    dict(
        type="RandomGrayscale",
        prob=0.2,
        keep_channels=True,
        channel_weights=(0.2989, 0.587, 0.114),  # CIFAR images are loaded as RGB
    ),
]
train_pipeline = [
    dict(type="MultiView", num_views=2, transforms=[view_pipeline]),
    dict(type="PackInputs"),
]
train_dataloader = dict(
    batch_size=128,
    num_workers=4,
    drop_last=True,
    persistent_workers=True,
    collate_fn=dict(type="default_collate"),
    dataset=dict(pipeline=train_pipeline),
)
val_dataloader = None
val_evaluator = None
test_dataloader = None
test_evaluator = None

data_preprocessor = dict(
    _delete_=True,
    type="SelfSupDataPreprocessor",
    mean=[129.304, 124.070, 112.434],
    std=[68.170, 65.392, 70.418],
)
optim_wrapper = dict(
    type="AmpOptimWrapper",
    loss_scale="dynamic",
    optimizer=dict(type="SGD", lr=0.0625, momentum=0.9, weight_decay=8e-4),
)
param_scheduler = [
    dict(
        type="LinearLR",
        start_factor=1 / 50,
        begin=0,
        end=10,
        convert_to_iter_based=True,
    ),
    dict(type="CosineAnnealingLR", begin=10, end=200, eta_min_ratio=1e-3),
]
train_cfg = dict(by_epoch=True, max_epochs=200)
default_hooks = dict(checkpoint=dict(interval=10, max_keep_ckpts=3))
auto_scale_lr = dict(base_batch_size=1024)
env_cfg = dict(cudnn_benchmark=True)
