"""Cross-entropy in place of VarCon: a small network, CIFAR-10.

    python tools/train.py configs/baselines/ce_speedrun_cifar10.py \
        --cfg-options train_dataloader.dataset.data_root=DATA

Everything but the loss is that of varcon_speedrun_cifar10.py. A linear classifier sits
on the features of the backbone, without projection, as is customary.
"""

_base_ = "../varcon_speedrun_cifar10.py"

model = dict(
    neck=None,
    head=dict(
        _delete_=True,
        type="ClassifierHead",
        num_classes=10,
        in_channels=128,
        loss=dict(type="CrossEntropyLoss"),
    ),
)
