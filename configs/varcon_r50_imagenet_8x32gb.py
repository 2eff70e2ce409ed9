"""VarCon, ResNet-50, ImageNet-1K, 200 epochs, on 8 GPUs of 32 GB.

    bash tools/dist_train.sh configs/varcon_r50_imagenet_8x32gb.py 8

As varcon_r50_imagenet.py with 128 images (256 views) on each GPU, a batch of 1,024, and
a quarter of the learning rate, 4.8 x 1,024 / 4,096. A third of the images of such a
batch have no classmate in it (36 % under random sampling), and their class mean is that
of their own two views. Not run at full scale by us.
"""

_base_ = "varcon_r50_imagenet.py"

train_dataloader = dict(batch_size=128)
optim_wrapper = dict(optimizer=dict(lr=1.2))
auto_scale_lr = dict(base_batch_size=1024)
