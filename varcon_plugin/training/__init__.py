"""What makes a step fast and exact in any door.

`TwoCrops` decodes a file and takes its random crops in the data workers; `BatchAugment`
flips, jitters, blurs and normalises them where the model is. Both adapters use these.
"""

from varcon_plugin.training.batch_augment import BatchAugment

__all__ = ["BatchAugment"]
