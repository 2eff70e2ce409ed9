"""VarCon, a small ResNet-18, any folder of small images, with diagnostics.

    python tools/train.py configs/varcon_r18_image_folder.py \
        --cfg-options train_dataloader.dataset.data_root=DATA

DATA/train/CLASS/*.png, resized to 32 x 32; one process with 128 images (256 views).
temperature and epsilon are the paper's, the augmentation is that of its CIFAR runs, the
rest is ours: SGD with warm-up and cosine, a ResNet-18 of quarter width, crops in the
data worker and the rest of the augmentation on the batch (docs/data.md).
"""

_base_ = "_base_/varcon_r18_folder.py"

data_preprocessor = dict(
    type="BatchAugmentDataPreprocessor",
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    blur_prob=0.0,
    channels_last=True,
)
train_pipeline = [
    dict(type="TwoCrops", scale=32, crop_ratio_range=(0.2, 1.0)),
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
    epoch_seed=dict(type="EpochSeedHook"),
    diagnostics=dict(type="VarConDiagnosticsHook", interval=10, histogram_epochs=1),
)
