"""Training data: WebDataset shards, manifests, mixtures, packing, importers and renderers."""
