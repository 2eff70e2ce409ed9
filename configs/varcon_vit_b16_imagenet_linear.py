"""Linear evaluation of varcon_vit_b16_imagenet.py, 90 epochs.

    bash tools/dist_train.sh configs/varcon_vit_b16_imagenet_linear.py 8 \
        --cfg-options model.backbone.init_cfg.checkpoint=PATH/epoch_200.pth

Frozen backbone, 8 GPUs with 128 images each, SGD with learning rate 12, no weight
decay, cosine: mmpretrain's linear evaluation of MoCo v3's ViT-B/16. Not run at full
scale by us.
"""

_base_ = [
    "mmpretrain::mocov3/benchmarks/vit-base-p16_8xb128-linear-coslr-90e_in1k.py",
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

model = dict(
    backbone=dict(
        _delete_=True,
        type="TIMMEncoder",
        model_name="vit_base_patch16_224",
        global_pool="token",
        frozen=True,
        init_cfg=dict(type="Pretrained", checkpoint="", prefix="backbone."),
    ),
    head=dict(
        _delete_=True,
        type="LinearClsHead",
        num_classes=1000,
        in_channels=768,
        topk=(1, 5),
    ),
)
auto_scale_lr = dict(base_batch_size=1024)
