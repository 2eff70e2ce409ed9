"""Prototype cross-entropy in place of VarCon: a small ResNet-18, images of 16 x 16.

    python tools/train.py configs/baselines/prototype_r18_image_folder16.py \
        --cfg-options train_dataloader.dataset.data_root=DATA

Everything but the loss is that of varcon_r18_image_folder16.py. This is VarCon with
epsilon = 0, a one-hot target and therefore twice the weight on -log p.
"""

_base_ = "../varcon_r18_image_folder16.py"

model = dict(
    head=dict(
        _delete_=True,
        type="LossHead",
        loss=dict(type="PrototypeLoss", temperature=0.1),
    ),
)
