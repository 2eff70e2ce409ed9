"""VarCon, ResNet-50, ImageNet-1K, 200 epochs, on one GPU.

    bash tools/dist_train.sh configs/varcon_r50_imagenet_1gpu.py 1

As varcon_r50_imagenet.py with a batch of 256 images (512 views), sized for 48 GB, and a
sixteenth of the learning rate, 4.8 x 256 / 4,096. For 24 GB add --cfg-options
train_dataloader.batch_size=128 and --auto-scale-lr. Three quarters of the images of
such a batch have no classmate in it (77 % under random sampling): expect less than from
large batches. Not run at full scale by us.
"""

_base_ = "varcon_r50_imagenet.py"

train_dataloader = dict(batch_size=256)
optim_wrapper = dict(optimizer=dict(lr=0.3))
auto_scale_lr = dict(base_batch_size=256)
