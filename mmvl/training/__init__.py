"""Training: recipes, loader, DeepSpeed loop, tokenizer."""
