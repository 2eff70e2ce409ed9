"""SupCon in place of VarCon: a small network, CIFAR-100.

    python tools/train.py configs/baselines/supcon_speedrun_cifar100.py \
        --cfg-options train_dataloader.dataset.data_root=DATA

Everything but the loss is that of varcon_speedrun_cifar100.py. Temperature 0.1:
SupCon's and VarCon's papers. The loss is pytorch-metric-learning's, a mean over
samples.
"""

_base_ = "../varcon_speedrun_cifar100.py"

model = dict(
    head=dict(
        _delete_=True,
        type="LossHead",
        loss=dict(type="MetricLearningLoss", name="SupConLoss", temperature=0.1),
    ),
)
