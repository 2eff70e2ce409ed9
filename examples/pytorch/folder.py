"""VarCon in plain PyTorch on a folder of images, FOLDER/<class>/*.

    pip install varcon-plugin torchvision simplejpeg
    python examples/pytorch/folder.py FOLDER --size 32 --epochs 10

Data workers decode and crop, everything else happens on the batch, on the device. Takes
any number of images a class; with fewer than three or so of each class in a batch, see
bank.py beside this.
"""

import argparse

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18

from varcon_plugin import VarConLoss
from varcon_plugin.training import BatchAugment
from varcon_plugin.training.crops import TwoCrops

parser = argparse.ArgumentParser()
parser.add_argument("folder")
parser.add_argument("--size", type=int, default=224, help="pixels of a crop's side")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--batch-size", type=int, default=128)
parser.add_argument("--workers", type=int, default=0)
args = parser.parse_args()
device = "cuda" if torch.cuda.is_available() else "cpu"

# ((x0, x1), label), the views as uint8 (H, W, 3); loader=str hands over the path
dataset = ImageFolder(args.folder, loader=str, transform=TwoCrops(args.size))
loader = DataLoader(
    dataset, args.batch_size, shuffle=True, drop_last=True, num_workers=args.workers
)
augment = BatchAugment().to(device)  # flip, jitter, grey, blur, normalise

backbone = resnet18()
backbone.fc = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))
model = backbone.to(device)
criterion = VarConLoss(num_classes=len(dataset.classes))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)

for epoch in range(args.epochs):
    total = 0.0
    for views, labels in loader:
        x0, x1 = augment([view.to(device, non_blocking=True) for view in views])
        embeddings = model(torch.cat((x0, x1)))
        loss = criterion(embeddings, labels.to(device).repeat(2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
    schedule.step()
    print(f"epoch: {epoch:>02}, loss: {total / max(1, len(loader)):.3f}")

backbone.fc = nn.Identity()  # the features are what was trained for
torch.save(backbone.state_dict(), "backbone.pth")
