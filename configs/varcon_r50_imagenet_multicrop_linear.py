"""Linear evaluation of varcon_r50_imagenet_multicrop.py on ImageNet-1K, 90 epochs.

    bash tools/dist_train.sh configs/varcon_r50_imagenet_multicrop_linear.py 8 \
        --cfg-options model.backbone.init_cfg.checkpoint=PATH/epoch_100.pth

As varcon_r50_imagenet_linear.py. Not run by us.
"""

_base_ = "varcon_r50_imagenet_linear.py"
