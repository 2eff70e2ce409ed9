"""Linear evaluation of varcon_r50_imagenet100.py, as that on ImageNet-1K.

    bash tools/dist_train.sh configs/varcon_r50_imagenet100_linear.py 8 \
        --cfg-options model.backbone.init_cfg.checkpoint=PATH/epoch_200.pth

A batch of 1,024 and a quarter of the learning rate (ours). Not run at full scale by us.
"""

_base_ = "varcon_r50_imagenet_linear.py"

model = dict(head=dict(num_classes=100))
data_preprocessor = dict(num_classes=100)
train_dataloader = dict(
    batch_size=128,
    dataset=dict(
        type="ImageFolder",
        data_root="data/imagenet100",
    ),
)
val_dataloader = dict(
    dataset=dict(
        type="ImageFolder",
        data_root="data/imagenet100",
    ),
)
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=0.4))
auto_scale_lr = dict(base_batch_size=1024)
