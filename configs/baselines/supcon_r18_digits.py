"""SupCon in place of VarCon: a small ResNet-18, handwritten digits.

    bash tools/dist_train.sh configs/baselines/supcon_r18_digits.py 2

Everything but the loss is that of varcon_r18_digits.py. Temperature 0.1: SupCon's and
VarCon's papers. The loss is pytorch-metric-learning's, a mean over samples; the
authors' code multiplies it by 0.1 / 0.07. The learning rate is VarCon's, whose gradient
starts out up to twice as large: tune it with --cfg-options
optim_wrapper.optimizer.lr=LR before drawing conclusions. Two processes on two CPU
cores, about a minute. In the 100 steps of this recipe SupCon hardly leaves its start
(loss near ln 511, tried with learning rates 0.02, 0.1 and 0.3, one seed). With four
times as many steps it learns: --cfg-options train_dataloader.batch_size=32
optim_wrapper.optimizer.lr=0.025.
"""

_base_ = "../varcon_r18_digits.py"

model = dict(
    head=dict(
        _delete_=True,
        type="LossHead",
        loss=dict(type="MetricLearningLoss", name="SupConLoss", temperature=0.1),
    ),
)
