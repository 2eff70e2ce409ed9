"""VarCon, a small ResNet-18, any folder of small images, with diagnostics.

    python tools/train.py configs/varcon_r18_image_folder.py \
        --cfg-options train_dataloader.dataset.data_root=DATA

DATA/train/CLASS/*.png, resized to 32 x 32; one process with 128 images (256 views).
temperature and epsilon are the paper's, the augmentation is that of its CIFAR runs, the
rest is ours: SGD with warm-up and cosine, a ResNet-18 of quarter width. 8 epochs of
10,000 images (CIFAR-10, 1,000 a class) take about eight minutes on one core of an AMD
EPYC.
"""

_base_ = "_base_/varcon_r18_folder.py"

data_preprocessor = dict(type="SelfSupDataPreprocessor")

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
        channel_weights=(0.114, 0.587, 0.2989),  # files are loaded as BGR
    ),
]
train_pipeline = [
    dict(type="LoadImage"),
    dict(type="MultiView", num_views=2, transforms=[view_pipeline]),
    dict(type="PackInputs"),
]
train_dataloader = dict(
    num_workers=1,
    persistent_workers=True,
    dataset=dict(pipeline=train_pipeline),
)

param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=1, end=8, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=8)
default_hooks = dict(
    checkpoint=dict(interval=8),
    diagnostics=dict(type="VarConDiagnosticsHook", interval=10, histogram_epochs=1),
)
