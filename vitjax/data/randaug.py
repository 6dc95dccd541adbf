"""RandAugment as AugReg used it."""
