"""Smoothed cross-entropy in place of VarCon: a small ResNet-18, a folder of images.

    python tools/train.py configs/baselines/ce_smoothing_r18_image_folder.py \
        --cfg-options train_dataloader.dataset.data_root=DATA

Everything but the loss is that of varcon_r18_image_folder.py. As the cross-entropy
baseline, with a target smoothed by 0.1, mmpretrain's customary value. DATA as in that
recipe. For another number of classes than 10 add model.head.num_classes=N.
"""

_base_ = "ce_r18_image_folder.py"

model = dict(
    head=dict(
        loss=dict(_delete_=True, type="LabelSmoothLoss", label_smooth_val=0.1),
    ),
)
