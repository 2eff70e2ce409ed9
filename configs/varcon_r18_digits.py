"""VarCon, a small ResNet-18, scikit-learn's handwritten digits: no download, no GPU.

    bash tools/dist_train.sh configs/varcon_r18_digits.py 2

1,347 images of 8 x 8 pixels, enlarged to 16 x 16; two processes with 128 images (256
views) each on two CPU cores, about a minute. temperature and epsilon are the paper's,
the rest is ours: SGD with warm-up and cosine, a ResNet-18 of quarter width, crops and
brightness and contrast as augmentation (no flip: a mirrored digit is not a digit).
"""

_base_ = ["mmpretrain::_base_/default_runtime.py", "_base_/varcon_runtime.py"]

model = dict(
    type="VarCon",
    backbone=dict(
        type="ResNet_CIFAR",
        depth=18,
        base_channels=16,
        stem_channels=16,
        zero_init_residual=False,
    ),
    neck=dict(type="MoCoV2Neck", in_channels=128, hid_channels=128, out_channels=64),
    head=dict(
        type="VarConHead",
        loss=dict(type="VarConLoss", temperature=0.1, epsilon=0.02, num_classes=10),
    ),
)
data_preprocessor = dict(
    type="SelfSupDataPreprocessor", mean=[127.5] * 3, std=[127.5] * 3
)

view_pipeline = [
    dict(type="RandomResizedCrop", scale=16, crop_ratio_range=(0.5, 1.0)),
    dict(type="ColorJitter", brightness=0.4, contrast=0.4),
]
train_pipeline = [
    dict(type="MultiView", num_views=2, transforms=[view_pipeline]),
    dict(type="PackInputs"),
]
train_dataloader = dict(
    batch_size=128,
    num_workers=0,
    drop_last=True,
    persistent_workers=False,
    pin_memory=False,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(type="Digits", split="train", pipeline=train_pipeline),
)

optim_wrapper = dict(
    optimizer=dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-4)
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, end=2, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=2, end=20, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=20)
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(interval=5))
randomness = dict(seed=0)
auto_scale_lr = dict(base_batch_size=256)
