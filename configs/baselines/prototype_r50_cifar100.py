"""Prototype cross-entropy in place of VarCon: ResNet-50, CIFAR-100.

    bash tools/dist_train.sh configs/baselines/prototype_r50_cifar100.py 8

Everything but the loss is that of varcon_r50_cifar100.py. This is VarCon with epsilon =
0, a one-hot target and therefore twice the weight on -log p: what VarCon gains over it
comes from its soft, adaptive target. Sized as that recipe. Not run at full scale by us.
"""

_base_ = "../varcon_r50_cifar100.py"

model = dict(
    head=dict(
        _delete_=True,
        type="LossHead",
        loss=dict(type="PrototypeLoss", temperature=0.1, num_classes=100),
    ),
)
