"""VarCon with any timm backbone, on a folder of images, FOLDER/<class>/*.

    pip install varcon-plugin torchvision simplejpeg timm
    python examples/pytorch/timm_backbone.py FOLDER --backbone convnext_atto --size 64

Saves the backbone alone; varcon evaluate timm:NAME backbone.pth judges it.
"""

import argparse

import timm
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from varcon_plugin import VarConLoss
from varcon_plugin.training import BatchAugment
from varcon_plugin.training.crops import TwoCrops

parser = argparse.ArgumentParser()
parser.add_argument("folder")
parser.add_argument("--backbone", default="resnet18", help="a timm model name")
parser.add_argument("--size", type=int, default=224)
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--batch-size", type=int, default=128)
args = parser.parse_args()
device = "cuda" if torch.cuda.is_available() else "cpu"

dataset = ImageFolder(args.folder, loader=str, transform=TwoCrops(args.size))
loader = DataLoader(dataset, args.batch_size, shuffle=True, drop_last=True)
augment = BatchAugment().to(device)
backbone = timm.create_model(args.backbone, num_classes=0)  # images to features
with torch.no_grad():
    width = backbone(torch.zeros(2, 3, args.size, args.size)).shape[1]
head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 128))
model = nn.Sequential(backbone, head).to(device)
criterion = VarConLoss(num_classes=len(dataset.classes))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)

for epoch in range(args.epochs):
    for views, labels in loader:
        embeddings = model(torch.cat(augment([view.to(device) for view in views])))
        loss = criterion(embeddings, labels.to(device).repeat(2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch: {epoch:>02}, loss: {loss.item():.3f}")
torch.save(backbone.state_dict(), "backbone.pth")
