"""VarCon in the Trainer of Hugging Face, on a folder of images, FOLDER/<class>/*.

    pip install varcon-plugin torchvision simplejpeg transformers accelerate
    python examples/huggingface/trainer.py FOLDER --size 32
    torchrun --nproc-per-node 8 examples/huggingface/trainer.py FOLDER

The model returns its loss, which is all that the Trainer asks for. A ResNet of
transformers from scratch; AutoModel.from_pretrained takes its place.
"""

import argparse

import torch
from torch import nn
from torchvision.datasets import ImageFolder
from transformers import ResNetConfig, ResNetModel, Trainer, TrainingArguments

from varcon_plugin import VarConLoss
from varcon_plugin.training import BatchAugment
from varcon_plugin.training.crops import TwoCrops

parser = argparse.ArgumentParser()
parser.add_argument("folder")
parser.add_argument("--size", type=int, default=224)
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--batch-size", type=int, default=128, help="on each process")
parser.add_argument("--out", default="work_dirs/huggingface")
args = parser.parse_args()


class VarConModel(nn.Module):
    """A backbone, a projection head and the loss."""

    def __init__(self, backbone, num_classes):
        super().__init__()
        self.augment = BatchAugment()
        self.backbone = backbone
        width = backbone.config.hidden_sizes[-1]
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.head.append(nn.Linear(width, 128))
        self.criterion = VarConLoss(num_classes=num_classes)

    def forward(self, views, labels):
        """The loss of views, a list of (N, H, W, 3) uint8, and labels (N,)."""
        images = torch.cat(self.augment(views))
        embeddings = self.head(self.backbone(images).pooler_output.flatten(1))
        return {"loss": self.criterion(embeddings, labels.repeat(len(views)))}


def collate(samples):
    """A batch as the model takes it."""
    views, labels = zip(*samples, strict=True)
    stacked = [torch.stack(view) for view in zip(*views, strict=True)]
    return {"views": stacked, "labels": torch.tensor(labels)}


if __name__ == "__main__":
    dataset = ImageFolder(args.folder, loader=str, transform=TwoCrops(args.size))
    small = ResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64], depths=[1, 1], layer_type="basic"
    )
    model = VarConModel(ResNetModel(small), len(dataset.classes))
    arguments = TrainingArguments(
        args.out,
        num_train_epochs=args.epochs,
        per_device_train_batch_size=args.batch_size,
        dataloader_drop_last=True,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        remove_unused_columns=False,
        report_to=[],
        save_strategy="no",
        logging_steps=5,
    )
    trainer = Trainer(model, arguments, collate, dataset)
    print(trainer.train().metrics)
    model.backbone.save_pretrained(args.out)
