"""mmpretrain's own recipe, to compare ours with."""

_base_ = "mmpretrain::simclr/simclr_resnet50_16xb256-coslr-200e_in1k.py"
