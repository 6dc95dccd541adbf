"""Parts that architectures share: embeddings, attention, blocks, positions, pooling."""
