r"""A config outside this repository: VarCon on your own images, FOLDER/train/<class>/*.

    pip install "varcon-plugin[mmpretrain]"
    varcon train varcon_on_my_images.py \
        --cfg-options train_dataloader.dataset.data_root=FOLDER

mmpretrain's own script and "mim train mmpretrain" run it too. Nothing but
custom_imports and three changed blocks tell it from mmpretrain's SimCLR recipe.
"""

_base_ = "mmpretrain::simclr/simclr_resnet50_16xb256-coslr-200e_in1k.py"
custom_imports = dict(imports=["varcon_plugin.mmpretrain"])
model = dict(
    type="VarCon",
    head=dict(
        _delete_=True,
        type="VarConHead",
        loss=dict(type="VarConLoss", temperature=0.1, epsilon=0.02),
    ),
)
train_dataloader = dict(
    batch_size=64,
    num_workers=4,
    collate_fn=dict(_delete_=True, type="default_collate"),
    dataset=dict(
        _delete_=True,
        type="ImageFolder",  # refuses folders that would be misread
        data_root="data/my_images",
        pipeline=[
            dict(type="TwoCrops", scale=224),  # decodes too; the rest is on the batch
            dict(type="PackInputs"),
        ],
    ),
)
data_preprocessor = dict(
    _delete_=True,
    type="BatchAugmentDataPreprocessor",
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
)
optim_wrapper = dict(
    _delete_=True,
    optimizer=dict(type="SGD", lr=0.05, momentum=0.9, weight_decay=1e-4),
)
train_cfg = dict(max_epochs=100)
param_scheduler = [
    dict(type="CosineAnnealingLR", T_max=100, by_epoch=True, end=100),
]
