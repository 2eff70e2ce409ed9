"""Recipes made small enough for a test."""

from pathlib import Path

from varcon_plugin.mmpretrain.launch import prepare

READERS = ("LoadImage", "LoadImageFromFile", "TwoCrops")
SMALL = {  # fewer layers of the same width: the parts fit as in the full network
    "resnet200": {"layers": (1, 1, 1, 1)},
    "vit_base_patch16_224": {"depth": 1, "img_size": 32},
}


def shrink(cfg, image_folder, work_dir):
    """Two steps of four small images, generated JPEGs; digits stay what they are."""
    dataset = {"type": "CustomDataset", "data_root": str(image_folder)}
    for loader, split in (("train_dataloader", "train"), ("val_dataloader", "val")):
        if cfg.get(loader) is None:
            continue
        cfg[loader].update(batch_size=4, num_workers=0, persistent_workers=False)
        cfg[loader].pop("drop_last", None)
        if cfg[loader].dataset.type != "Digits":
            pipeline = cfg[loader].dataset.pipeline
            if pipeline[0].type not in READERS:  # CIFAR holds its images
                load = [{"type": "LoadImageFromFile"}, {"type": "Resize", "scale": 16}]
                pipeline = [*load, *pipeline]
            cfg[loader].dataset = {
                **dataset,
                "data_prefix": split,
                "pipeline": small_crops(pipeline),
            }
        cfg[loader].dataset["indices"] = 8
    backbone = cfg.model.backbone
    backbone.update(SMALL.get(backbone.get("model_name"), {}))
    labels = (cfg.model.head.get("loss") or {}).get("pseudo_labels")
    if labels is not None:  # no more classes than views
        labels.num_classes = 4
    cfg.randomness = {"seed": 0}
    cfg.train_cfg = {"by_epoch": True, "max_epochs": 1}
    if not Path(cfg.filename.replace(".py", "_linear.py")).is_file():
        cfg.default_hooks["checkpoint"] = None  # nobody reads it: saves writing it
    cfg.work_dir, cfg.launcher = str(work_dir), "none"
    prepare(cfg, "train")
    return cfg


def small_crops(steps):
    """The same pipeline with crops of 32 pixels at most."""
    if isinstance(steps, list):
        return [small_crops(step) for step in steps]
    if not isinstance(steps, dict):
        return steps
    small = {key: small_crops(value) for key, value in steps.items()}
    size = {
        "RandomResizedCrop": "scale",
        "TwoCrops": "scale",
        "CenterCrop": "crop_size",
    }
    if (key := size.get(small.get("type"))) is not None:
        small[key] = 32 if small.get(key, 224) > 32 else 16
    return small


WIDTH = 32  # of what the narrow backbones return
NARROW = {
    "ResNet": {"depth": 18, "base_channels": WIDTH // 8, "stem_channels": WIDTH // 8},
    "SpeedrunNet": {"widths": (4, 8, WIDTH)},
    "resnet200": {"channels": (1, 2, 4, WIDTH // 4)},
    "vit_base_patch16_224": {"embed_dim": WIDTH, "num_heads": 2},
}


def narrow(model):
    """Fewer channels too, in a model that `shrink` has made small."""
    kind = model.backbone.get("model_name", model.backbone.type.split("_CIFAR")[0])
    model.backbone.update(NARROW[kind])
    neck, loss = model.get("neck") or {}, model.head.get("loss") or {}
    sizes = {"in_channels": WIDTH, "hid_channels": 16, "out_channels": 16}
    neck.update({key: size for key, size in sizes.items() if key in neck})
    if "in_channels" in model.head:
        model.head.in_channels = WIDTH
    for part in (loss.get("centroids"), loss.get("pseudo_labels")):
        if part is not None:
            part.dim = 16
