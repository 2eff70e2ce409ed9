"""Cross-entropy in place of VarCon: a small ResNet-18, handwritten digits.

    bash tools/dist_train.sh configs/baselines/ce_r18_digits.py 2

Everything but the loss is that of varcon_r18_digits.py. A linear classifier sits on the
pooled features of the backbone, without projection, as is customary; both views of an
image are classified. Two processes on two CPU cores, about a minute.
"""

_base_ = "../varcon_r18_digits.py"

model = dict(
    neck=dict(_delete_=True, type="GlobalAveragePooling"),
    head=dict(
        _delete_=True,
        type="ClassifierHead",
        num_classes=10,
        in_channels=128,
        loss=dict(type="CrossEntropyLoss"),
    ),
)
