"""VarCon, ResNet-200 (timm), ImageNet-1K, 200 epochs.

    bash tools/dist_train.sh configs/varcon_r200_imagenet.py 8

As varcon_r50_imagenet.py, with timm's ResNet-200, which mmpretrain lacks, and half its
batch: 8 GPUs of 80 GB with 256 images (512 views) each, so half its learning rate. The
last BatchNorm of each block starts at zero, as there. The paper trains a ResNet-200;
its hyper-parameters and number are not known to us. Not run at full scale by us.
"""

_base_ = "varcon_r50_imagenet.py"

model = dict(
    backbone=dict(_delete_=True, type="TIMMEncoder", model_name="resnet200"),
    neck=dict(with_avg_pool=False),  # timm has pooled
)
train_dataloader = dict(batch_size=256)
optim_wrapper = dict(optimizer=dict(lr=2.4))
auto_scale_lr = dict(base_batch_size=2048)
