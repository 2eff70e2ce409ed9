"""VarCon, ResNet-101, ImageNet-1K, 200 epochs.

    bash tools/dist_train.sh configs/varcon_r101_imagenet.py 8

As varcon_r50_imagenet.py with a deeper backbone: 8 GPUs of 80 GB with 512 images (1,024
views) each. If that does not fit, add --cfg-options train_dataloader.batch_size=256 and
--auto-scale-lr. The paper trains a ResNet-101; its hyper-parameters and number are not
known to us. Not run at full scale by us.
"""

_base_ = "varcon_r50_imagenet.py"

model = dict(backbone=dict(depth=101))
