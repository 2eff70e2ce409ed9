"""Prototype cross-entropy in place of VarCon: a small network, CIFAR-100.

    python tools/train.py configs/baselines/prototype_speedrun_cifar100.py \
        --cfg-options train_dataloader.dataset.data_root=DATA

Everything but the loss is that of varcon_speedrun_cifar100.py. This is VarCon with the
class means of each batch, epsilon = 0, a one-hot target and therefore twice the weight
on -log p.
"""

_base_ = "../varcon_speedrun_cifar100.py"

model = dict(
    head=dict(
        _delete_=True,
        type="LossHead",
        loss=dict(type="PrototypeLoss", temperature=0.1, num_classes=100),
    ),
)
