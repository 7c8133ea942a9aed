"""All operations that are measured, in the order of the table."""

from mmvl.benchmark.attention_cases import attention_cases
from mmvl.benchmark.case import Case
from mmvl.benchmark.experts_cases import experts_cases
from mmvl.benchmark.lightning_cases import lightning_cases
from mmvl.benchmark.norm_cases import norm_cases


def all_cases() -> list[Case]:
    """Names are unique, and none begins another's that it does not belong to."""
    return [*lightning_cases(), *norm_cases(), *experts_cases(), *attention_cases()]
