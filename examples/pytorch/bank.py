"""Momentum centroids in a training loop: small batches of many classes.

    pip install varcon-plugin scikit-learn
    python examples/pytorch/bank.py

The bank keeps one reference a class from batch to batch. It moves in training mode
only, is part of the criterion's state, and is compared with before it moves. Trains a
small network on scikit-learn's digits, 16 images a batch, in seconds.
"""

import argparse

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from varcon_plugin import MomentumCentroids, VarConLoss
from varcon_plugin.training.digits import load_digits_split

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=5)
args = parser.parse_args()
torch.manual_seed(0)


def split(name):
    """Images (N, 1, 8, 8) in [0, 1] and labels (N,)."""
    images, labels = load_digits_split(name)
    return torch.from_numpy(images)[:, None] / 255, torch.from_numpy(labels)


train, test = split("train"), split("test")
loader = DataLoader(TensorDataset(*train), batch_size=16, shuffle=True)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32))
bank = MomentumCentroids(num_classes=10, dim=32)
criterion = VarConLoss(centroids=bank)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

for epoch in range(args.epochs):
    model.train()
    criterion.train()
    for images, labels in loader:
        noisy = [images + 0.1 * torch.randn_like(images) for _ in range(2)]
        loss = criterion(model(torch.cat(noisy)), labels.repeat(2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    criterion.eval()  # the bank stands still
    with torch.no_grad():
        loss = criterion(model(test[0]), test[1])
        # the references are classifiers themselves: the nearest one names the class
        nearest = (model(test[0]) @ nn.functional.normalize(bank.means).T).argmax(dim=1)
        right = (nearest == test[1]).float().mean()
    print(f"epoch: {epoch:>02}, test loss: {loss:.3f}, nearest reference: {right:.1%}")

torch.save({"model": model.state_dict(), "criterion": criterion.state_dict()}, "run.pt")
