"""Text: sentence pairs, the vocabulary that both languages share, and rows of tokens."""
