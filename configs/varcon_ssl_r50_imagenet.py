"""VarCon without labels, ResNet-50, ImageNet-1K, 200 epochs.

    bash tools/dist_train.sh configs/varcon_ssl_r50_imagenet.py 8

varcon_r50_imagenet.py with each image its own class and 3,000 latent classes above
them, told by a moving average of the model; the labels of ImageNet are not read. Not
yet run at full scale by us.

Where the numbers come from:
- data, augmentation, backbone, neck, LARS with lr 4.8 and weight decay 1e-6, warm-up
  and cosine over 200 epochs, batch 4096: mmpretrain's SimCLR ResNet-50 recipe.
- temperature 0.1 and epsilon 0.02: the authors' code (CIFAR, with labels), and
  mmpretrain's SimCLR, whose temperature is 0.1 too.
- teacher momentum 0.01, that is a moving average of 0.99 on a cosine to 1: mmpretrain's
  BYOL (200 epochs) and MoCo v3 (100 and 300 epochs).
- 3,000 latent classes, sharpness 0.05, 3 iterations: mmpretrain's SwAV (3,000
  prototypes, 3 iterations, epsilon 0.05). A batch has 8,192 views, so no queue.
- a quarter of the weight after the first third (20,800 of 62,400 iterations): ours,
  from small images (docs/self_supervised.md).
"""

_base_ = "varcon_r50_imagenet.py"

model = dict(
    type="VarConSSL",
    teacher_momentum=0.01,
    head=dict(
        _delete_=True,
        type="VarConSSLHead",
        loss=dict(
            type="SelfSupervisedVarConLoss",
            temperature=0.1,
            epsilon=0.02,
            pseudo_labels=dict(
                type="PseudoLabels",
                num_classes=3000,
                dim=128,
                sharpness=0.05,
                iterations=3,
            ),
            latent_weight=0.25,
            latent_after=20800,
        ),
    ),
)
default_hooks = dict(latent_classes=dict(type="LatentClassesHook"))
