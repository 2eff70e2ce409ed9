"""VarCon without labels, a small ResNet-18, any folder of small images.

    python tools/train.py configs/varcon_ssl_r18_image_folder.py \
        --cfg-options train_dataloader.dataset.data_root=DATA

varcon_r18_image_folder.py with each image its own class: DATA/train/*/*.png, whatever
the folders are called. Add latent classes with
--cfg-options model.head.loss.pseudo_labels.type=PseudoLabels \
model.head.loss.pseudo_labels.num_classes=100 model.head.loss.pseudo_labels.dim=128
"""

_base_ = "varcon_r18_image_folder.py"

model = dict(
    type="VarConSSL",
    head=dict(
        _delete_=True,
        type="VarConSSLHead",
        loss=dict(type="SelfSupervisedVarConLoss", temperature=0.1, epsilon=0.02),
    ),
)
default_hooks = dict(
    diagnostics=dict(views=1),  # the views of an image are classmates
    latent_classes=dict(type="LatentClassesHook"),
)
