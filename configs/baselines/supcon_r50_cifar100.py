"""SupCon in place of VarCon: ResNet-50, CIFAR-100.

    bash tools/dist_train.sh configs/baselines/supcon_r50_cifar100.py 8

Everything but the loss is that of varcon_r50_cifar100.py. Temperature 0.1: SupCon's and
VarCon's papers. The loss is pytorch-metric-learning's, a mean over samples; the
authors' code multiplies it by 0.1 / 0.07. The learning rate is VarCon's, whose gradient
starts out up to twice as large: tune it with --cfg-options
optim_wrapper.optimizer.lr=LR before drawing conclusions. Sized as that recipe. Not run
at full scale by us. SupCon's paper reports 76.5 % for 1,000 epochs.
"""

_base_ = "../varcon_r50_cifar100.py"

model = dict(
    head=dict(
        _delete_=True,
        type="LossHead",
        loss=dict(type="MetricLearningLoss", name="SupConLoss", temperature=0.1),
    ),
)
