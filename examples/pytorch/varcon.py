"""VarCon with lightly in plain PyTorch, on scikit-learn's handwritten digits.

    pip install "varcon-plugin[lightly]"
    python examples/pytorch/varcon.py

About a minute on two CPU cores. Batch size, learning rate and length are chosen for
that, not for accuracy.
"""

import torch
from lightly.models.modules import SimCLRProjectionHead
from torch import nn
from torch.utils.data import DataLoader
from torchvision.models import resnet18

from varcon_plugin.lightly import VarConLoss
from varcon_plugin.lightly.data import Digits, digits_transform

device = "cuda" if torch.cuda.is_available() else "cpu"

# Two augmented views and the label of each image: ((x0, x1), label). For your own
# images: lightly.data.LightlyDataset("path/to/folder", transform=SimCLRTransform()),
# with one subfolder for each class.
dataset = Digits("train", transform=digits_transform(image_size=32))
dataloader = DataLoader(dataset, batch_size=128, shuffle=True, drop_last=True)

backbone = resnet18()
backbone.fc = nn.Identity()
model = nn.Sequential(backbone, SimCLRProjectionHead(512, 512, 128)).to(device)

criterion = VarConLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.06)

for epoch in range(8):
    total = 0.0
    for batch in dataloader:
        z0, z1 = (model(view.to(device)) for view in batch[0])
        loss = criterion(z0, z1, batch[1])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        total += loss.item()
    print(f"epoch: {epoch:>02}, loss: {total / len(dataloader):.3f}")
