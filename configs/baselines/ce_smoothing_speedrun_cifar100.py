"""Smoothed cross-entropy in place of VarCon: a small network, CIFAR-100.

    python tools/train.py configs/baselines/ce_smoothing_speedrun_cifar100.py \
        --cfg-options train_dataloader.dataset.data_root=DATA

Everything but the loss is that of varcon_speedrun_cifar100.py. As the cross-entropy
baseline, with a target smoothed by 0.1, mmpretrain's customary value.
"""

_base_ = "ce_speedrun_cifar100.py"

model = dict(
    head=dict(
        loss=dict(_delete_=True, type="LabelSmoothLoss", label_smooth_val=0.1),
    ),
)
