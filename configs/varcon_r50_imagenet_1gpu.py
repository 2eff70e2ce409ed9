"""VarCon, ResNet-50, ImageNet-1K, 200 epochs, on one GPU of 32 GB.

    bash tools/dist_train.sh configs/varcon_r50_imagenet_1gpu.py 1

As varcon_r50_imagenet.py with a batch of 256 images (512 views) and a sixteenth of the
learning rate, 4.8 x 256 / 4,096. Activations are recomputed in the backward pass, which
makes the batch fit. Three quarters of the images of such a batch have no classmate in
it (77 % under random sampling): expect less than from large batches. Not run at full
scale by us.
"""

_base_ = "varcon_r50_imagenet.py"

model = dict(backbone=dict(with_cp=True))
train_dataloader = dict(batch_size=256)
optim_wrapper = dict(optimizer=dict(lr=0.3))
auto_scale_lr = dict(base_batch_size=256)
