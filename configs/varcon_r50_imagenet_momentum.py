"""VarCon with momentum centroids, ResNet-50, ImageNet-1K, 200 epochs, on 8 small GPUs.

    bash tools/dist_train.sh configs/varcon_r50_imagenet_momentum.py 8

32 images (64 views) on each GPU, a batch of 256, and a sixteenth of the learning rate
of varcon_r50_imagenet.py, 4.8 x 256 / 4,096. Three quarters of the images of such a
batch have no classmate in it (77 % under random sampling), so references are kept from
batch to batch and each image is compared with all 1,000 classes (docs/centroids.md).
The momentum is ours. SyncBN as mmpretrain's SimCLR has it, for 64 views are few for
BatchNorm. Not run at full scale by us.
"""

_base_ = "varcon_r50_imagenet.py"

model = dict(
    backbone=dict(norm_cfg=dict(type="SyncBN")),
    neck=dict(norm_cfg=dict(type="SyncBN")),
    head=dict(
        loss=dict(
            _delete_=True,
            type="VarConLoss",
            temperature=0.1,
            epsilon=0.02,
            centroids=dict(
                type="MomentumCentroids", num_classes=1000, dim=128, momentum=0.95
            ),
        )
    ),
)
train_dataloader = dict(batch_size=32)
optim_wrapper = dict(optimizer=dict(lr=0.3))
auto_scale_lr = dict(base_batch_size=256)
