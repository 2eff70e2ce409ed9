"""Cross-entropy in place of VarCon: ResNet-50, ImageNet-1K.

    bash tools/dist_train.sh configs/baselines/ce_r50_imagenet.py 8

Everything but the loss is that of varcon_r50_imagenet.py. A linear classifier sits on
the pooled features of the backbone, without projection, as is customary; both views of
an image are classified. Sized as that recipe. Not run at full scale by us.
"""

_base_ = "../varcon_r50_imagenet.py"

model = dict(
    neck=dict(_delete_=True, type="GlobalAveragePooling"),
    head=dict(
        _delete_=True,
        type="ClassifierHead",
        num_classes=1000,
        in_channels=2048,
        loss=dict(type="CrossEntropyLoss"),
    ),
)
