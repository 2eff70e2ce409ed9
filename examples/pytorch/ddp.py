"""VarCon under DistributedDataParallel, on a folder of images, FOLDER/<class>/*.

    pip install varcon-plugin torchvision simplejpeg
    torchrun --nproc-per-node 8 examples/pytorch/ddp.py FOLDER    # GPUs
    torchrun --nproc-per-node 2 examples/pytorch/ddp.py FOLDER    # or CPU processes

The loss needs no change: class references span all ranks, and the gradient that DDP
averages is that of one process with the whole batch.
"""

import argparse
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18

from varcon_plugin import VarConLoss
from varcon_plugin.distributed import leave_group
from varcon_plugin.training import BatchAugment
from varcon_plugin.training.crops import TwoCrops

parser = argparse.ArgumentParser()
parser.add_argument("folder")
parser.add_argument("--size", type=int, default=224)
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--batch-size", type=int, default=128, help="on each process")
args = parser.parse_args()


def main():
    """Train; the model is gone before the process group is."""
    device, gpus = torch.device("cpu"), None
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        gpus = [device.index]
    # small messages of the loss stay on the host
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")

    dataset = ImageFolder(args.folder, loader=str, transform=TwoCrops(args.size))
    sampler = DistributedSampler(dataset, drop_last=True)
    loader = DataLoader(dataset, args.batch_size, sampler=sampler, drop_last=True)
    augment = BatchAugment().to(device)
    backbone = resnet18(num_classes=128)
    if gpus:
        backbone = nn.SyncBatchNorm.convert_sync_batchnorm(backbone)
    model = DistributedDataParallel(backbone.to(device), device_ids=gpus)
    criterion = VarConLoss(num_classes=len(dataset.classes))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        for views, labels in loader:
            x0, x1 = augment([view.to(device) for view in views])
            loss = criterion(model(torch.cat((x0, x1))), labels.to(device).repeat(2))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if dist.get_rank() == 0:  # its own share of the loss, not the global one
            print(f"epoch: {epoch:>02}, loss on rank 0: {loss.item():.3f}")
    if dist.get_rank() == 0:
        torch.save(model.module.state_dict(), "model.pth")


if __name__ == "__main__":
    main()
    leave_group()
