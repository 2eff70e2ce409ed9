"""VarCon, a small ResNet-18, any folder of small images at 16 x 16: for grids on CPUs.

    python tools/train.py configs/varcon_r18_image_folder16.py \
        --cfg-options train_dataloader.dataset.data_root=DATA

For grids on CPUs: tools/run_experiment.py ... --recipe r18_image_folder16 --data DATA.
DATA as in varcon_r18_image_folder.py. An epoch is several times cheaper than that
recipe's: a quarter of the pixels, a stride of 2 in the first stage instead of the last,
flip and colour on whole batches, no diagnostics. temperature and epsilon are the
paper's, the rest is ours.
"""

_base_ = "_base_/varcon_r18_folder.py"

model = dict(backbone=dict(strides=(2, 2, 2, 1)))
data_preprocessor = dict(
    type="BatchAugmentDataPreprocessor",
    jitter_prob=0.0,
    grayscale_prob=0.0,
    blur_prob=0.0,
    channels_last=True,
)
train_pipeline = [
    dict(type="TwoCrops", scale=16, crop_ratio_range=(0.4, 1.0), keep=True),
    dict(type="PackInputs"),
]
train_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(pipeline=train_pipeline),
)

param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=1, end=10, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=10)
default_hooks = dict(
    checkpoint=dict(interval=10),
    epoch_seed=dict(type="EpochSeedHook"),
)
