"""mmvl: ask and train vision-language models built like MiniMax-VL-01."""

from importlib.metadata import version as _version

__version__ = _version("mmvl")
__all__ = ["VLM"]


def __getattr__(name):
    """`from mmvl import VLM` without paying for torch on `import mmvl`."""
    if name == "VLM":
        from mmvl.vlm import VLM

        return VLM
    raise AttributeError(f"module 'mmvl' has no attribute {name!r}")
