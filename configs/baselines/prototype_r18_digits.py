"""Prototype cross-entropy in place of VarCon: a small ResNet-18, handwritten digits.

    bash tools/dist_train.sh configs/baselines/prototype_r18_digits.py 2

Everything but the loss is that of varcon_r18_digits.py. This is VarCon with epsilon =
0, a one-hot target and therefore twice the weight on -log p: what VarCon gains over it
comes from its soft, adaptive target. Two processes on two CPU cores, about a minute.
"""

_base_ = "../varcon_r18_digits.py"

model = dict(
    head=dict(
        _delete_=True,
        type="LossHead",
        loss=dict(type="PrototypeLoss", temperature=0.1, num_classes=10),
    ),
)
