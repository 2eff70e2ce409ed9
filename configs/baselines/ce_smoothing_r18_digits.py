"""Smoothed cross-entropy in place of VarCon: a small ResNet-18, handwritten digits.

    bash tools/dist_train.sh configs/baselines/ce_smoothing_r18_digits.py 2

Everything but the loss is that of varcon_r18_digits.py. As the cross-entropy baseline,
with a target smoothed by 0.1, mmpretrain's customary value. Two processes on two CPU
cores, about a minute.
"""

_base_ = "ce_r18_digits.py"

model = dict(
    head=dict(
        loss=dict(_delete_=True, type="LabelSmoothLoss", label_smooth_val=0.1),
    ),
)
