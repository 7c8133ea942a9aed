"""Generation: requests, sampling, batching over the hybrid cache."""
