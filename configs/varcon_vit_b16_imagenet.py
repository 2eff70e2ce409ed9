"""VarCon, ViT-B/16 (timm), ImageNet-1K, 200 epochs.

    bash tools/dist_train.sh configs/varcon_vit_b16_imagenet.py 8

Sized for 8 GPUs of 80 GB (256 images, 512 views each). Not run at full scale by us; the
paper trains a ViT-B/16, its number and hyper-parameters are not known to us.

Where the numbers come from:
- data, two augmentations, AdamW with weight decay 0.1, mixed precision: mmpretrain's
  MoCo v3 ViT-B/16 recipe, whose learning rate of 2.4e-3 for a batch of 4,096 is halved
  for 2,048 here. Warm-up of 40 epochs as there; cosine to 200 epochs, the paper's.
- gradient clipping at 1: mmpretrain's supervised ViT recipes.
- the class token after the final norm (timm's default) goes into SimCLR's two-layer
  projection. global_pool="avg" takes the mean of the patch tokens instead.
- temperature 0.1 and epsilon 0.02: the authors' code.
"""

_base_ = [
    "mmpretrain::_base_/datasets/imagenet_bs512_mocov3.py",
    "mmpretrain::_base_/default_runtime.py",
    "_base_/varcon_runtime.py",
]

model = dict(
    type="VarCon",
    backbone=dict(
        type="TIMMEncoder", model_name="vit_base_patch16_224", global_pool="token"
    ),
    neck=dict(
        type="NonLinearNeck",
        in_channels=768,
        hid_channels=2048,
        out_channels=128,
        num_layers=2,
        with_avg_pool=False,
    ),
    head=dict(
        type="VarConHead",
        loss=dict(type="VarConLoss", temperature=0.1, epsilon=0.02, num_classes=1000),
    ),
)
train_dataloader = dict(
    batch_size=256, collate_fn=dict(_delete_=True, type="default_collate")
)
optim_wrapper = dict(
    type="AmpOptimWrapper",
    loss_scale="dynamic",
    optimizer=dict(type="AdamW", lr=1.2e-3, weight_decay=0.1),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-4, end=40, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=40, end=200, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=200)
default_hooks = dict(checkpoint=dict(interval=10, max_keep_ckpts=3))
auto_scale_lr = dict(base_batch_size=2048)
env_cfg = dict(cudnn_benchmark=True)
