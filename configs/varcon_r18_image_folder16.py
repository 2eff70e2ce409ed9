"""VarCon, a small ResNet-18, any folder of small images at 16 x 16: for grids on CPUs.

    python tools/train.py configs/varcon_r18_image_folder16.py \
        --cfg-options train_dataloader.dataset.data_root=DATA

For grids on CPUs: tools/run_experiment.py ... --recipe r18_image_folder16 --data DATA.
DATA as in varcon_r18_image_folder.py. An epoch is several times cheaper than that
recipe's: a quarter of the pixels, a stride of 2 in the first stage instead of the last,
flip and colour on whole batches, no diagnostics. temperature and epsilon are the
paper's, the rest is ours.
"""

_base_ = "_base_/varcon_r18_quarter.py"

model = dict(
    backbone=dict(strides=(2, 2, 2, 1)),
    neck=dict(type="MoCoV2Neck", in_channels=128, hid_channels=128, out_channels=128),
    head=dict(
        type="VarConHead",
        loss=dict(type="VarConLoss", temperature=0.1, epsilon=0.02),
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
    dict(type="TwoCrops", scale=16, crop_ratio_range=(0.4, 1.0), keep=True),
    dict(type="PackInputs"),
]
train_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        type="CustomDataset",
        data_root="data/images",
        data_prefix="train",
        pipeline=train_pipeline,
    ),
)

param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=1, end=10, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=10)
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(interval=10),
    epoch_seed=dict(type="EpochSeedHook"),
)
auto_scale_lr = dict(base_batch_size=128)
