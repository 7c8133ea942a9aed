"""What may come next in constrained answers, asked of the callers' own code before a step."""

from collections.abc import Iterable

import torch

from mmvl.engine.request import Request
from mmvl.engine.scheduler import Work


def ask_masks(works: Iterable[Work], size: int) -> dict[Request, Exception]:
    """Set `mask_V` of the requests that sample under a mask, at least `size` ids. -> whose mask is broken, and how."""
    failed: dict[Request, Exception] = {}
    for request in (work.request for work in works if work.samples and work.request.params.logit_mask is not None):
        try:
            mask_V = request.params.logit_mask.next_mask(request.output_ids)
            if mask_V is not None and (mask_V.dtype != torch.bool or mask_V.ndim != 1 or len(mask_V) < size):
                raise ValueError(f"a mask is a boolean vector of at least {size} ids, not {tuple(mask_V.shape)}")
            request.mask_V = mask_V
        except Exception as error:  # it is the caller's code
            failed[request] = error
    return failed
