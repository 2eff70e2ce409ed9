"""VarCon, a small ResNet-18, scikit-learn's handwritten digits: no download, no GPU.

    bash tools/dist_train.sh configs/varcon_r18_digits.py 2

1,347 images of 8 x 8 pixels, enlarged to 16 x 16; two processes with 128 images (256
views) each on two CPU cores, about a minute. temperature and epsilon are the paper's,
the rest is ours: SGD with warm-up and cosine, a ResNet-18 of quarter width, crops and
brightness and contrast as augmentation (no flip: a mirrored digit is not a digit).
"""

_base_ = "_base_/varcon_r18_quarter.py"

model = dict(
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
    num_workers=0,
    persistent_workers=False,
    dataset=dict(type="Digits", split="train", pipeline=train_pipeline),
)

param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, end=2, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=2, end=20, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=20)
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(interval=5))
auto_scale_lr = dict(base_batch_size=256)
