"""Linear evaluation of varcon_r50_cifar10.py: the protocol of CIFAR-100.

    bash tools/dist_train.sh configs/varcon_r50_cifar10_linear.py 8 \
        --cfg-options model.backbone.init_cfg.checkpoint=PATH/epoch_200.pth

8 GPUs with 128 images each. Also for the baselines of this recipe. Not run at full
scale by us.
"""

_base_ = "varcon_r50_cifar100_linear.py"

model = dict(head=dict(num_classes=10))
data_preprocessor = dict(
    num_classes=10, mean=[125.307, 122.961, 113.8575], std=[51.5865, 50.847, 51.255]
)
train_dataloader = dict(dataset=dict(type="CIFAR10", data_root="data/cifar10"))
val_dataloader = dict(dataset=dict(type="CIFAR10", data_root="data/cifar10"))
test_dataloader = dict(dataset=dict(type="CIFAR10", data_root="data/cifar10"))
