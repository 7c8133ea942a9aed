"""The configuration of a whole vision-language model, read from and written to Hugging Face's `config.json`."""

from __future__ import annotations

from dataclasses import dataclass

from mmvl.text_backbone.config import TextConfig
from mmvl.vision.config import CLIP_MEAN, CLIP_STD, TilingConfig, VisionConfig

MODEL_TYPE = "minimax_vl_01"
ARCHITECTURE = "MiniMaxVL01ForConditionalGeneration"


@dataclass(frozen=True)
class VLConfig:
    """Text backbone, vision encoder, and how they join.

    `image_grid_pinpoints` are the canvas sizes (width, height) in pixels that the tiler may choose from.
    `image_min_edge`, mmvl's own: an image whose shorter side has fewer pixels is enlarged to it before; 0, as in the
    released models: none is. `image_trim_margins`, likewise: an image that would have to be made smaller and has a
    quarter of empty margin is cut to what stands on it.
    `vision_feature_layer` is -1 (last layer) and the adapter's activation is GELU in every released model; anything
    else is refused when the file is read, because the forward pass would silently differ.
    """

    text: TextConfig
    vision: VisionConfig
    image_token_index: int
    image_grid_pinpoints: tuple[tuple[int, int], ...]
    image_mean: tuple[float, float, float] = CLIP_MEAN
    image_std: tuple[float, float, float] = CLIP_STD
    image_min_edge: int = 0
    image_trim_margins: bool = False

    @classmethod
    def from_dict(cls, d: dict, preprocessor: dict | None = None) -> VLConfig:
        """Parse a `config.json` of model_type minimax_vl_01 and, where there is one, its preprocessor_config.json.

        Raises:
            ValueError: a part is missing, or a setting asks for a forward pass that mmvl does not have.
        """
        for key in ("text_config", "vision_config"):
            if key not in d:
                raise ValueError(
                    f"config.json has no {key!r}: it is not a vision-language model of the {MODEL_TYPE} kind"
                )
        fixed = {
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "default",
            "projector_hidden_act": "gelu",
            "process_image_mode": "anyres",
        }
        for key, only in fixed.items():
            if d.get(key, only) != only:
                raise ValueError(f"config.json: {key} = {d[key]!r} is not supported, only {only!r} is")
        tiling = TilingConfig.from_dicts(d, preprocessor)
        return cls(
            text=TextConfig.from_dict(d["text_config"]),
            vision=VisionConfig.from_dict(d["vision_config"]),
            image_token_index=d.get("image_token_index", d.get("image_token_id", 200025)),
            image_grid_pinpoints=tiling.grid_pinpoints,
            image_mean=tiling.mean,
            image_std=tiling.std,
            image_min_edge=tiling.min_edge,
            image_trim_margins=tiling.trim_margins,
        )

    def to_dict(self) -> dict:
        """The released dialect of `config.json`."""
        return {
            "architectures": [ARCHITECTURE],
            "model_type": MODEL_TYPE,
            "ignore_index": -100,
            "image_grid_pinpoints": [list(p) for p in self.image_grid_pinpoints],
            **({"image_min_edge": self.image_min_edge} if self.image_min_edge else {}),
            **({"image_trim_margins": True} if self.image_trim_margins else {}),
            "image_token_index": self.image_token_index,
            "process_image_mode": "anyres",
            "projector_hidden_act": "gelu",
            "text_config": self.text.to_dict(),
            "tie_word_embeddings": self.text.tie_word_embeddings,
            "vision_config": self.vision.to_dict(),
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "default",
        }
