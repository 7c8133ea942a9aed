"""Generation: requests, sampling, batching over the hybrid cache."""

from mmvl.engine.broken import EngineBroken
from mmvl.engine.engine import Engine
from mmvl.engine.request import Request, TokenLogprob, Update
from mmvl.engine.sampling_params import SamplingParams
from mmvl.engine.stats import Stats

__all__ = ["Engine", "EngineBroken", "Request", "SamplingParams", "Stats", "TokenLogprob", "Update"]
