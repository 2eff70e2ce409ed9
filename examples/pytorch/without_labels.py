"""VarCon without labels in a training loop, on scikit-learn's handwritten digits.

    pip install varcon-plugin scikit-learn
    python examples/pytorch/without_labels.py

Each image is its own class, and thirty latent classes above them are told by a moving
average of the model. The labels of the digits serve to say at the end of each epoch how
far the latent classes agree with them (NMI), and for nothing else. Seconds on a CPU.
"""

import argparse

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from varcon_plugin import PseudoLabels, SelfSupervisedVarConLoss
from varcon_plugin.health.latent_classes import LatentClassMonitor, mutual_information
from varcon_plugin.training.digits import load_digits_split

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=5)
args = parser.parse_args()
torch.manual_seed(0)

images, labels = load_digits_split("train")
data = TensorDataset(torch.from_numpy(images)[:, None] / 255, torch.from_numpy(labels))
loader = DataLoader(data, batch_size=128, shuffle=True, drop_last=True)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32))
teacher = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
criterion = SelfSupervisedVarConLoss(pseudo_labels=PseudoLabels(30, dim=32))
criterion.check_batch(images=128, views=2)
monitor = LatentClassMonitor(criterion)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

for epoch in range(args.epochs):
    found, truth = [], []
    for batch, classes in loader:
        views = [batch + 0.2 * torch.randn_like(batch) for _ in range(2)]
        with torch.no_grad():
            told = [teacher(view) for view in views]
        terms = criterion.forward_components(*map(model, views), teacher=told)
        optimizer.zero_grad()
        terms.loss.backward()
        optimizer.step()
        teacher.update_parameters(model)
        monitor.add(terms)
        found.append(terms.assignment.own)
        truth.append(classes.repeat(2))
    values = monitor.report()
    agreement = mutual_information(torch.cat(found), torch.cat(truth))
    warning = monitor.news(values, progress=(epoch + 1) / args.epochs)
    print(
        f"epoch: {epoch:>02}, loss: {terms.loss:.2f}, "
        f"classes in use: {values['latent_used']:.0f} of 30, "
        f"views agree: {values['latent_agreement']:.0%}, "
        f"NMI with the labels: {agreement:.2f}"
    )
    if warning:
        print(f"{warning.name}: {warning.message}")
