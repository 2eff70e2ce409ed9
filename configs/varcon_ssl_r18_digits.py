"""VarCon without labels, a small ResNet-18, scikit-learn's handwritten digits.

    bash tools/dist_train.sh configs/varcon_ssl_r18_digits.py 2

varcon_r18_digits.py with each image its own class and 30 latent classes above them; the
labels of the digits are not read. The weight of the latent classes, a quarter after the
first third of the run (5 iterations an epoch, 20 epochs), is ours.
"""

_base_ = "varcon_r18_digits.py"

model = dict(
    type="VarConSSL",
    head=dict(
        _delete_=True,
        type="VarConSSLHead",
        loss=dict(
            type="SelfSupervisedVarConLoss",
            temperature=0.1,
            epsilon=0.02,
            pseudo_labels=dict(type="PseudoLabels", num_classes=30, dim=64),
            latent_weight=0.25,
            latent_after=33,
        ),
    ),
)
default_hooks = dict(latent_classes=dict(type="LatentClassesHook", interval=20))
