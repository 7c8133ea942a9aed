"""Where the model is that comes with mmvl."""

from pathlib import Path

MMVL_TINY = Path(__file__).parent / "models" / "mmvl-tiny"
