"""What makes a step fast and exact in any door.

`TwoCrops` decodes a file and takes its random crops in the data workers; `BatchAugment`
flips, jitters, blurs and normalises them where the model is. With `MicroBatches` a
model sees a batch piece by piece. Both adapters use these.
"""

from varcon_plugin.training.batch_augment import BatchAugment
from varcon_plugin.training.micro_batches import MicroBatches

__all__ = ["BatchAugment", "MicroBatches"]
