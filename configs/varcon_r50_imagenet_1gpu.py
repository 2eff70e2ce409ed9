"""VarCon, ResNet-50, ImageNet-1K, 200 epochs, on one GPU.

    bash tools/dist_train.sh configs/varcon_r50_imagenet_1gpu.py 1

varcon_r50_imagenet.py on one GPU: same batch of 4,096 images (8,192 views), same
learning rate. The encoder sees 256 views at a time (docs/scale.md), the loss sees them
all, so the class references are those of the whole batch; BatchNorm normalises over the
256 views, where 8 GPUs would over 1,024 each. A step runs the encoder forward twice.
The images of a batch take 6 GB on the GPU, and 1.2 GB for each batch that a data worker
holds ready. For a smaller GPU add --cfg-options model.micro_batch_size=64. Not run at
full scale by us.
"""

_base_ = "varcon_r50_imagenet.py"

model = dict(micro_batch_size=256)
train_dataloader = dict(batch_size=4096)
