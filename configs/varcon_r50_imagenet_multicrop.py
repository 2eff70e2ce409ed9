"""VarCon, ResNet-50, ImageNet-1K, multi-crop and a slow encoder, 100 epochs.

    bash tools/dist_train.sh configs/varcon_r50_imagenet_multicrop.py 8

32 images (1 view of 224 x 224 and 8 of 96 x 96 each) on each GPU, a batch of 256. On
fewer GPUs add --auto-scale-lr. Not run by us.

Where the numbers come from: t-ReX (https://arxiv.org/abs/2206.15369 and its code,
naver/trex), whose t-ReX* reports 80.2 % linear top-1 after 100 epochs with what is
nearly VarCon at epsilon = 0 and references that outlive the batch:
- batch 256, SGD with momentum 0.9, lr 0.1, weight decay 1e-4 but none on norm layers
  and biases, 10 epochs of warm-up, cosine to 1e-6, SyncBN;
- 1 crop of scale 0.4 to 1 and 8 of 0.05 to 0.4; jitter (0.4, 0.4, 0.2, 0.1) with
  probability 0.8, grayscale 0.2, blur, solarisation 0.2 (theirs is on some views only);
- references from an encoder averaged with decay 0.999, updated after the loss,
  temperature 0.1, 256 dimensions.
Ours: a moving average for each class where they keep the last 8,192 embeddings, its
momentum, the neck of mmpretrain's SimCLR with 256 outputs, epsilon 0.02 (the paper's).
"""

_base_ = ["_base_/simclr_r50_batch_augment.py", "_base_/varcon_runtime.py"]

model = dict(
    type="VarCon",
    ema_decay=0.999,
    backbone=dict(norm_cfg=dict(type="SyncBN")),
    neck=dict(out_channels=256, norm_cfg=dict(type="SyncBN")),
    head=dict(
        _delete_=True,
        type="VarConHead",
        loss=dict(
            type="VarConLoss",
            temperature=0.1,
            epsilon=0.02,
            centroids=dict(
                type="MomentumCentroids", num_classes=1000, dim=256, momentum=0.99
            ),
        ),
    ),
)
data_preprocessor = dict(
    brightness=0.4,
    contrast=0.4,
    saturation=0.2,
    hue=0.1,
    solarize_prob=0.2,
)
train_pipeline = [
    dict(
        type="TwoCrops",
        scale=224,
        crop_ratio_range=(0.4, 1.0),
        num_views=1,
        small_views=8,
        small_scale=96,
        small_crop_ratio_range=(0.05, 0.4),
    ),
    dict(type="PackInputs"),
]
train_dataloader = dict(
    batch_size=32,
    num_workers=8,
    collate_fn=dict(_delete_=True, type="default_collate"),
    dataset=dict(pipeline=train_pipeline),
)
optim_wrapper = dict(
    _delete_=True,
    type="AmpOptimWrapper",
    loss_scale="dynamic",
    optimizer=dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = [
    dict(
        type="LinearLR",
        start_factor=1e-4,
        by_epoch=True,
        begin=0,
        end=10,
        convert_to_iter_based=True,
    ),
    dict(
        type="CosineAnnealingLR",
        T_max=90,
        eta_min=1e-6,
        by_epoch=True,
        begin=10,
        end=100,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=100)
auto_scale_lr = dict(base_batch_size=256)
