"""Linear evaluation of varcon_r50_image_folder.py, 90 epochs.

    bash tools/dist_train.sh configs/varcon_r50_image_folder_linear.py 1 --cfg-options \
        model.backbone.init_cfg.checkpoint=PATH/epoch_200.pth \
        train_dataloader.dataset.data_root=DATA val_dataloader.dataset.data_root=DATA

DATA/train/CLASS/* and DATA/val/CLASS/* (or test), up to 1,000 classes: with fewer, the
other outputs of the classifier stay unused. As on ImageNet-1K, one GPU with 256 images
and the learning rate in proportion.
"""

_base_ = "varcon_r50_imagenet_linear.py"

train_dataloader = dict(
    batch_size=256, dataset=dict(type="ImageFolder", data_root="data/images")
)
val_dataloader = dict(dataset=dict(type="ImageFolder", data_root="data/images"))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=0.1))
auto_scale_lr = dict(base_batch_size=256)
