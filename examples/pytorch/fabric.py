"""VarCon with Lightning Fabric, on a folder of images, FOLDER/<class>/*.

    pip install varcon-plugin torchvision simplejpeg lightning-fabric
    python examples/pytorch/fabric.py FOLDER --devices 2 --precision bf16-mixed

Fabric places, wraps and launches; the loop and the loss stay as they are.
"""

import argparse

import torch
from lightning_fabric import Fabric
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18

from varcon_plugin import VarConLoss
from varcon_plugin.training import BatchAugment
from varcon_plugin.training.crops import TwoCrops

parser = argparse.ArgumentParser()
parser.add_argument("folder")
parser.add_argument("--size", type=int, default=224)
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--batch-size", type=int, default=128, help="on each process")
parser.add_argument("--devices", type=int, default=1)
parser.add_argument("--precision", default="32-true")
args = parser.parse_args()

if __name__ == "__main__":
    fabric = Fabric(devices=args.devices, precision=args.precision)
    fabric.launch()
    fabric.seed_everything(0, verbose=False)
    dataset = ImageFolder(args.folder, loader=str, transform=TwoCrops(args.size))
    loader = DataLoader(dataset, args.batch_size, shuffle=True, drop_last=True)
    model = resnet18(num_classes=128)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model, optimizer = fabric.setup(model, optimizer)
    loader = fabric.setup_dataloaders(loader)
    augment = BatchAugment().to(fabric.device)
    criterion = VarConLoss(num_classes=len(dataset.classes))

    for epoch in range(args.epochs):
        for views, labels in loader:
            embeddings = model(torch.cat(augment(views)))
            loss = criterion(embeddings, labels.repeat(2))
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
        fabric.print(f"epoch: {epoch:>02}, loss on rank 0: {loss.item():.3f}")
