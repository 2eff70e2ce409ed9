"""Smoothed cross-entropy in place of VarCon: ResNet-50, CIFAR-100.

    bash tools/dist_train.sh configs/baselines/ce_smoothing_r50_cifar100.py 8

Everything but the loss is that of varcon_r50_cifar100.py. As the cross-entropy
baseline, with a target smoothed by 0.1, mmpretrain's customary value. Sized as that
recipe. Not run at full scale by us.
"""

_base_ = "ce_r50_cifar100.py"

model = dict(
    head=dict(
        loss=dict(_delete_=True, type="LabelSmoothLoss", label_smooth_val=0.1),
    ),
)
