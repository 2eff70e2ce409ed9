"""Two views an image, fast: workers crop, the device does the rest.

`TwoCrops` decodes a file and takes its random crops in the data workers; `BatchAugment`
flips, jitters, blurs and normalises them where the model is. Both adapters use these.
"""

from varcon_plugin.augment.batch import BatchAugment

__all__ = ["BatchAugment"]
