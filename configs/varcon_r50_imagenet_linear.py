"""Linear evaluation of a VarCon ResNet-50 on ImageNet-1K, 90 epochs.

    bash tools/dist_train.sh configs/varcon_r50_imagenet_linear.py 8 \
        --cfg-options model.backbone.init_cfg.checkpoint=PATH/epoch_200.pth

Everything is mmpretrain's linear evaluation of SimCLR: frozen backbone, 8 GPUs
with 512 images each, LARS with lr 1.6 and no weight decay, cosine. The run stops at
once if the checkpoint did not fill the backbone. Not yet run at full scale
by us; the paper reports 79.36 % top-1.
"""

_base_ = [
    "mmpretrain::simclr/benchmarks/resnet50_8xb512-linear-coslr-90e_in1k.py",
    "_base_/varcon_runtime.py",
]

# mmpretrain's pipelines, which read files strictly here (docs/data.md)
train_pipeline = [
    dict(type="LoadImage"),
    dict(type="RandomResizedCrop", scale=224, backend="pillow"),
    dict(type="RandomFlip", prob=0.5, direction="horizontal"),
    dict(type="PackInputs"),
]
test_pipeline = [
    dict(type="LoadImage", max_corrupt=0),
    dict(type="ResizeEdge", scale=256, edge="short", backend="pillow"),
    dict(type="CenterCrop", crop_size=224),
    dict(type="PackInputs"),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
custom_hooks = [dict(type="PretrainedCheckHook")]
auto_scale_lr = dict(base_batch_size=4096)
