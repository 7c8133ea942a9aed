"""The decoder on packed tokens: lightning and softmax attention, mixture of experts, hybrid cache."""
