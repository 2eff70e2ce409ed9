"""VarCon, ResNet-50, ImageNet-1K, with SupCon's weight decay and strong augmentation.

    bash tools/dist_train.sh configs/varcon_r50_imagenet_supcon.py 8

As varcon_r50_imagenet.py, 8 GPUs with 512 images each, but for what SupCon's own
ImageNet recipe for ResNet-50 (google-research/supcon, 78.7 % linear top-1 after 350
epochs at batch 6,144) and PaCo (arXiv 2107.12028, 79.3 %) have in common against
SimCLR's: a weight decay a hundred to a thousand times larger and an automatic
augmentation policy. Weight decay 1e-4: SupCon's for ResNet-101 and 200 and PaCo's;
SupCon's ResNet-50 has 1e-3. RandAugment with 2 operations of magnitude 10 in the place
of the colour jitter: PaCo's; SupCon has AutoAugment. lr 6.4: SupCon's 0.4 x
batch / 256. Not run by us.
"""

_base_ = "varcon_r50_imagenet.py"

data_preprocessor = dict(rand_augment=(2, 10), jitter_prob=0.0)
optim_wrapper = dict(optimizer=dict(lr=6.4, weight_decay=1e-4))
