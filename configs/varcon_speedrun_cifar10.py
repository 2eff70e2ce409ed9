"""VarCon, a small network, CIFAR-10 in minutes on two CPU cores or a GPU.

    python tools/train.py configs/varcon_speedrun_cifar10.py \
        --cfg-options train_dataloader.dataset.data_root=DATA

DATA/train/CLASS/*.png holds the images; nothing is downloaded. In bfloat16 where the
CPU or GPU has it. Afterwards:

    python tools/evaluate.py configs/varcon_speedrun_cifar10.py \
        work_dirs/varcon_speedrun_cifar10/epoch_20.pth --data DATA
"""

_base_ = "_base_/varcon_speedrun.py"

model = dict(head=dict(loss=dict(centroids=dict(num_classes=10))))
train_dataloader = dict(dataset=dict(data_root="data/cifar10"))
