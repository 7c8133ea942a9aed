"""Settings of the vision half: the ViT (VisionConfig) and how images are cut into tiles (TilingConfig)."""

import ast
from dataclasses import asdict, dataclass, fields

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class VisionConfig:
    """The ViT; field names as in `vision_config` of the released config.json, defaults are MiniMax-VL-01's.

    `image_size` is the tile's edge in pixels, not the size of an image.
    """

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    image_size: int = 336
    patch_size: int = 14
    layer_norm_eps: float = 1e-5
    hidden_act: str = "gelu"
    projection_dim: int | None = None  # read and written back, used by nothing

    def __post_init__(self):
        if self.hidden_act != "gelu":
            raise ValueError(f"vision_config: hidden_act is {self.hidden_act!r}, only 'gelu' (erf) is supported")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"vision_config: image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"vision_config: hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )

    @property
    def patches(self) -> int:
        """Patches in one tile (576 as released)."""
        return (self.image_size // self.patch_size) ** 2

    @classmethod
    def from_dict(cls, d: dict) -> "VisionConfig":
        """From the `vision_config` of a config.json; keys that say nothing about the computation are ignored."""
        values = {f.name: d[f.name] for f in fields(cls) if f.name in d}
        for f in fields(cls):
            value = values.get(f.name, f.default)
            if f.type in (int, float) and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise ValueError(f"vision_config: {f.name} must be a number, is {value!r}")
        return cls(**values)

    def to_dict(self) -> dict:
        d = {k: v for k, v in asdict(self).items() if v is not None}
        return {"model_type": "clip_vision_model", "attention_dropout": 0.0, "num_channels": 3} | d


@dataclass(frozen=True)
class TilingConfig:
    """How an image becomes tiles: tile and patch edge in pixels, the canvas sizes (width, height) in pixels, colours.

    The order of `grid_pinpoints` matters: of two equally good canvases the first is taken. min_edge: an image whose
    shorter side has fewer pixels is enlarged to it before; 0, as released: none is. trim_margins: an image that would
    have to be made smaller and is mostly empty margin is cut to what stands on it before (margins.py); not as released.
    """

    tile: int
    patch: int
    grid_pinpoints: tuple[tuple[int, int], ...]
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    min_edge: int = 0
    trim_margins: bool = False

    def __post_init__(self):
        if self.tile <= 0 or self.patch <= 0 or self.tile % self.patch:
            raise ValueError(f"tiling: tile edge {self.tile} is not a multiple of the patch edge {self.patch}")
        if not self.grid_pinpoints:
            raise ValueError("tiling: image_grid_pinpoints is empty, at least one canvas size is needed")
        for width, height in self.grid_pinpoints:
            if width <= 0 or height <= 0 or width % self.tile or height % self.tile:
                raise ValueError(
                    f"tiling: canvas {width}x{height} in image_grid_pinpoints: not made of {self.tile}-pixel tiles"
                )
        if type(self.min_edge) is not int or not 0 <= self.min_edge <= self.tile:
            raise ValueError(f"tiling: image_min_edge {self.min_edge!r} is no number from 0 to the tile's {self.tile}")
        if type(self.trim_margins) is not bool:
            raise ValueError(f"tiling: image_trim_margins {self.trim_margins!r} is neither true nor false")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError("tiling: image_mean and image_std need three numbers each, image_std above zero")

    @property
    def thumbnail_tokens(self) -> int:
        """Image tokens of one whole tile (576 as released): the least that any image costs."""
        return (self.tile // self.patch) ** 2

    @classmethod
    def from_dicts(cls, config: dict, preprocessor: dict | None = None) -> "TilingConfig":
        """From a model's config.json and, where there is one, its preprocessor_config.json (which wins on colours).

        Raises ValueError where the two contradict each other, or ask for another rule than this tiling.
        """
        preprocessor = preprocessor or {}
        if "vision_config" not in config:
            raise ValueError("config.json has no 'vision_config': a text-only model has no way to look at images")
        vision = VisionConfig.from_dict(config["vision_config"])
        grids = _grids(config.get("image_grid_pinpoints") or preprocessor.get("image_grid_pinpoints"))
        theirs = _grids(preprocessor.get("image_grid_pinpoints"))
        if theirs and set(theirs) != set(grids):
            raise ValueError("image_grid_pinpoints differ between config.json and preprocessor_config.json")
        if (mode := preprocessor.get("process_image_mode", "anyres")) != "anyres":
            raise ValueError(f"preprocessor_config.json: process_image_mode is {mode!r}, only 'anyres' is supported")
        size = preprocessor.get("size")
        edges = set(size.values() if isinstance(size, dict) else size or ())
        if edges - {vision.image_size}:
            raise ValueError(f"preprocessor_config.json: size {size}, config.json: image_size {vision.image_size}")
        return cls(
            tile=vision.image_size,
            patch=vision.patch_size,
            grid_pinpoints=grids,
            mean=tuple(preprocessor.get("image_mean") or CLIP_MEAN),
            std=tuple(preprocessor.get("image_std") or CLIP_STD),
            min_edge=config.get("image_min_edge", 0),
            trim_margins=config.get("image_trim_margins", False),
        )

    def to_preprocessor_dict(self) -> dict:
        """The preprocessor_config.json of this tiling, in the released layout.

        `min_edge` and `trim_margins` are config.json's.
        """
        return {
            "image_processor_type": "MiniMaxVL01ImageProcessor",
            "processor_class": "MiniMaxVL01Processor",
            "process_image_mode": "anyres",
            "do_convert_rgb": True,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "size": {"height": self.tile, "width": self.tile},
            "patch_size": self.patch,
            "image_grid_pinpoints": [list(g) for g in self.grid_pinpoints],
        }


def _grids(value) -> tuple[tuple[int, int], ...]:
    """Canvas sizes from a list of pairs, or from such a list written as a string (both occur in checkpoints)."""
    try:
        pairs = ast.literal_eval(value) if isinstance(value, str) else value
        return tuple((int(w), int(h)) for w, h in pairs or ())
    except (SyntaxError, TypeError, ValueError):
        raise ValueError(f"image_grid_pinpoints must be a list of [width, height], is {str(value)[:80]!r}") from None


def released_grid_pinpoints() -> tuple[tuple[int, int], ...]:
    """The 28 canvas sizes (width, height) of MiniMax-VL-01, in the released order: at most 18 tiles of 336 pixels."""
    most_rows = {1: 6, 2: 6, 3: 6, 4: 4, 5: 3, 6: 3}
    return tuple((336 * a, 336 * b) for a, most in most_rows.items() for b in range(1, most + 1))
