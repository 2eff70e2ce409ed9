"""Smoothed cross-entropy in place of VarCon: ResNet-50, CIFAR-10.

    bash tools/dist_train.sh configs/baselines/ce_smoothing_r50_cifar10.py 8

Everything but the loss is that of varcon_r50_cifar10.py. As the cross-entropy baseline,
with a target smoothed by 0.1, mmpretrain's customary value. Sized as that recipe. Not
run at full scale by us.
"""

_base_ = "../varcon_r50_cifar10.py"

model = dict(
    neck=dict(_delete_=True, type="GlobalAveragePooling"),
    head=dict(
        _delete_=True,
        type="ClassifierHead",
        num_classes=10,
        in_channels=2048,
        loss=dict(type="LabelSmoothLoss", label_smooth_val=0.1),
    ),
)
