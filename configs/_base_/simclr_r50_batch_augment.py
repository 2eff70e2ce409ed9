"""mmpretrain's SimCLR ResNet-50 recipe with its augmentation on the device.

Data workers decode and crop; flip, colour jitter, grayscale, blur and normalisation run
on the batch, with the same distribution, at several times the images a second for each
CPU core (docs/data.md). A damaged image is logged and replaced; crops and augmentation
follow from the seed, also after a resume. On a GPU each batch is copied while the step
before still runs, as DALI and timm do.
"""

_base_ = "mmpretrain::simclr/simclr_resnet50_16xb256-coslr-200e_in1k.py"

data_preprocessor = dict(type="BatchAugmentDataPreprocessor", channels_last=True)
train_pipeline = [dict(type="TwoCrops", scale=224), dict(type="PackInputs")]
train_dataloader = dict(pin_memory=True, dataset=dict(pipeline=train_pipeline))
default_hooks = dict(
    epoch_seed=dict(type="EpochSeedHook"), prefetch=dict(type="PrefetchHook")
)
