"""SupCon in place of VarCon: a small ResNet-18, images of 16 x 16.

    python tools/train.py configs/baselines/supcon_r18_image_folder16.py \
        --cfg-options train_dataloader.dataset.data_root=DATA

Everything but the loss is that of varcon_r18_image_folder16.py. Temperature 0.1:
SupCon's and VarCon's papers. The loss is pytorch-metric-learning's, a mean over
samples; the authors' code multiplies it by 0.1 / 0.07. The learning rate is VarCon's:
tune it before drawing conclusions.
"""

_base_ = "../varcon_r18_image_folder16.py"

model = dict(
    head=dict(
        _delete_=True,
        type="LossHead",
        loss=dict(type="MetricLearningLoss", name="SupConLoss", temperature=0.1),
    ),
)
