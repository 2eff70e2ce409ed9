"""VarCon, ResNet-50, any folder of images at 224 x 224, 200 epochs.

    bash tools/dist_train.sh configs/varcon_r50_image_folder.py 1 \
        --cfg-options train_dataloader.dataset.data_root=DATA

DATA/train/CLASS/*, any number of classes; one GPU with 256 images (512 views), of which
the encoder sees 128 views at a time (docs/scale.md). varcon_r50_imagenet.py otherwise,
its learning rate in proportion to the batch: other numbers of GPUs or images follow
with --auto-scale-lr. Few images want more epochs (train_cfg.max_epochs). Built and
trained for two steps by us, not to its end.
"""

_base_ = "varcon_r50_imagenet.py"

model = dict(micro_batch_size=128, head=dict(loss=dict(num_classes=None)))
train_dataloader = dict(
    batch_size=256, dataset=dict(type="ImageFolder", data_root="data/images")
)
optim_wrapper = dict(optimizer=dict(lr=0.3))
auto_scale_lr = dict(base_batch_size=256)
