"""What the small recipes share: a ResNet-18 of quarter width, SGD, 128 images.

bfloat16 where the device has it (optim_wrapper.type=OptimWrapper for float32), and
channels-last (model.channels_last=False for the other layout): ours, for speed.
"""

_base_ = ["mmpretrain::_base_/default_runtime.py", "varcon_runtime.py"]

model = dict(
    type="VarCon",
    backbone=dict(
        type="ResNet_CIFAR",
        depth=18,
        base_channels=16,
        stem_channels=16,
        zero_init_residual=False,
    ),
)
train_dataloader = dict(
    batch_size=128,
    drop_last=True,
    pin_memory=False,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
)
optim_wrapper = dict(
    type="BFloat16OptimWrapper",
    optimizer=dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-4),
)
randomness = dict(seed=0)
env_cfg = dict(cudnn_benchmark=True)
