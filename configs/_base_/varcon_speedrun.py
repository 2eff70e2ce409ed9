"""What the speed runs share: network, views, schedule, precision.

The network and the schedule, SGD with Nesterov momentum on a triangle, follow the
CIFAR speed runs (https://arxiv.org/abs/2404.00498); the projection, the class
references and all numbers are ours, chosen by short runs on CIFAR-100.
"""

_base_ = ["mmpretrain::_base_/default_runtime.py", "varcon_runtime.py"]

model = dict(
    type="VarCon",
    backbone=dict(type="SpeedrunNet", widths=(32, 128, 128)),
    neck=dict(
        type="LinearNeck",
        in_channels=128,
        out_channels=128,
        norm_cfg=None,
        act_cfg=None,
    ),
    head=dict(
        type="VarConHead",
        loss=dict(
            type="VarConLoss",
            temperature=0.1,
            epsilon=0.02,
            centroids=dict(type="MomentumCentroids", dim=128, momentum=0.99),
        ),
    ),
)
data_preprocessor = dict(
    type="BatchAugmentDataPreprocessor",
    mean=[127.5] * 3,
    std=[63.75] * 3,
    to_rgb=True,
    jitter_prob=0.0,
    grayscale_prob=0.0,
    blur_prob=0.0,
    channels_last=True,
)
train_pipeline = [
    dict(
        type="TwoCrops",
        scale=32,
        crop_ratio_range=(0.4, 1.0),
        num_views=1,
        keep=True,  # each image is decoded once
    ),
    dict(type="PackInputs"),
]
train_dataloader = dict(
    batch_size=512,
    num_workers=0,
    persistent_workers=False,
    drop_last=True,
    pin_memory=False,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(type="ImageFolder", pipeline=train_pipeline),
)
optim_wrapper = dict(
    type="AmpOptimWrapper",
    dtype="bfloat16",
    optimizer=dict(type="SGD", lr=0.3, momentum=0.9, nesterov=True, weight_decay=5e-4),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, end=4, convert_to_iter_based=True),
    dict(
        type="LinearLR",
        start_factor=1.0,
        end_factor=0.0,
        begin=4,
        end=20,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=20)
default_hooks = dict(
    logger=dict(interval=50),
    checkpoint=dict(interval=20),
    epoch_seed=dict(type="EpochSeedHook"),
)
randomness = dict(seed=0)
auto_scale_lr = dict(base_batch_size=512)
