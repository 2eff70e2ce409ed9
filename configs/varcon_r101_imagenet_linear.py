"""Linear evaluation of varcon_r101_imagenet.py, as that of the ResNet-50.

    bash tools/dist_train.sh configs/varcon_r101_imagenet_linear.py 8 \
        --cfg-options model.backbone.init_cfg.checkpoint=PATH/epoch_200.pth

Not run at full scale by us.
"""

_base_ = "varcon_r50_imagenet_linear.py"

model = dict(backbone=dict(depth=101))
