"""Generation: requests, sampling, batching over the hybrid cache."""

from mmvl.engine.engine import Engine, Update
from mmvl.engine.request import Request
from mmvl.engine.sampling_params import SamplingParams

__all__ = ["Engine", "Request", "SamplingParams", "Update"]
