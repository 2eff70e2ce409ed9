"""What the recipes for a folder of images share: VarCon's parts, where the images are.

On top of the small ResNet-18; how large the images are and how they are augmented is
for each recipe to say.
"""

_base_ = "varcon_r18_quarter.py"

model = dict(
    neck=dict(type="MoCoV2Neck", in_channels=128, hid_channels=128, out_channels=128),
    head=dict(
        type="VarConHead",
        loss=dict(type="VarConLoss", temperature=0.1, epsilon=0.02),
    ),
)
data_preprocessor = dict(mean=[127.5] * 3, std=[63.75] * 3, to_rgb=True)
train_dataloader = dict(
    dataset=dict(type="ImageFolder", data_root="data/images"),
)
default_hooks = dict(logger=dict(interval=20))
auto_scale_lr = dict(base_batch_size=128)
