#!/usr/bin/env bash
# The tests of the mmpretrain adapter on the original OpenMMLab releases, in a virtual
# environment of their own:  bash tools/try_upstream.sh [FOLDER]
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu saves the GPU build of torch.
set -euo pipefail

venv=${1:-.venv-upstream}
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
if [[ ! -x $venv/bin/python ]]; then
  "${PYTHON:-python3}" -m venv "$venv"
fi
"$venv/bin/python" -m pip install --quiet --upgrade "pip>=25" wheel "setuptools<81"
"$venv/bin/python" -m pip install --quiet \
  "mmengine==0.10.7" "mmcv-lite==2.2.0" "mmpretrain==1.2.0" \
  "numpy<2" "opencv-python<4.11" "setuptools<81" \
  torch torchvision "timm>=1.0" "pytorch-metric-learning>=2.9" \
  scikit-learn scipy matplotlib rich safetensors tensorboard pytest

cd "$root"
# The original mmengine cannot read its own checkpoints under torch >= 2.6 (linear
# evaluation, resuming) but with this switch, which is for checkpoints of your own.
export TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1
PATH="$venv/bin:$PATH" PYTHONPATH="$root" "$venv/bin/python" -m pytest \
  tests/mmpretrain_adapter/test_algorithm.py tests/mmpretrain_adapter/test_configs.py \
  tests/mmpretrain_adapter/test_hooks.py tests/mmpretrain_adapter/test_backbone.py \
  -W "ignore::DeprecationWarning" -W "ignore::UserWarning" -W "ignore::FutureWarning"
