"""The decoder's settings, read from a Hugging Face config.json in either dialect.

Released dialect (MiniMax-Text-01, and text_config of MiniMax-VL-01): attn_type_list, rotary_dim, layernorm_*_alpha.
Native dialect (transformers' `minimax`): layer_types, rope_parameters, *_alpha_factor, post-norm implied.
"""

from dataclasses import asdict, dataclass, fields

LIGHTNING, SOFTMAX = 0, 1
_LAYER_TYPES = {"linear_attention": LIGHTNING, "full_attention": SOFTMAX}
_NATIVE_FACTORS = {
    "layernorm_full_attention": "full_attn",
    "layernorm_linear_attention": "linear_attn",
    "layernorm_mlp": "mlp",
}


_KINDS = {int: (int, "a whole number"), float: ((int, float), "a number"), bool: (bool, "true or false")}


@dataclass(frozen=True)
class TextConfig:
    """Field names and meanings are those of the released config.json; widths and counts are in elements."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rotary_dim: int
    vocab_size: int
    intermediate_size: int  # of each expert
    num_local_experts: int
    num_experts_per_tok: int
    attn_type_list: tuple[int, ...]  # one a layer: 0 lightning, 1 softmax
    rope_theta: float = 10_000.0
    postnorm: bool = False  # True: the residual is the normed input of the block
    layernorm_full_attention_alpha: float = 1.0
    layernorm_full_attention_beta: float = 1.0
    layernorm_linear_attention_alpha: float = 1.0
    layernorm_linear_attention_beta: float = 1.0
    layernorm_mlp_alpha: float = 1.0
    layernorm_mlp_beta: float = 1.0
    rms_norm_eps: float = 1e-5
    shared_intermediate_size: int = 0  # 0: no shared expert
    shared_moe_mode: str = "sigmoid"
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 32_768
    router_aux_loss_coef: float = 0.001
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    initializer_range: float = 0.02

    def __post_init__(self):
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
                     "vocab_size", "intermediate_size", "num_local_experts", "num_experts_per_tok"):  # fmt: skip
            _require(getattr(self, name) > 0, f"{name} must be positive, is {getattr(self, name)}")
        _require(
            len(self.attn_type_list) == self.num_hidden_layers,
            f"attn_type_list (or layer_types) has {len(self.attn_type_list)} entries for num_hidden_layers = "
            f"{self.num_hidden_layers}",
        )
        _require(set(self.attn_type_list) <= {LIGHTNING, SOFTMAX}, "attn_type_list may hold only 0 and 1")
        _require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            f"num_attention_heads = {self.num_attention_heads} is not a multiple of num_key_value_heads = "
            f"{self.num_key_value_heads}",
        )
        _require(
            0 <= self.rotary_dim <= self.head_dim and self.rotary_dim % 2 == 0,
            f"rotary_dim must be even and at most head_dim = {self.head_dim}, is {self.rotary_dim}",
        )
        _require(
            self.num_experts_per_tok <= self.num_local_experts,
            f"num_experts_per_tok = {self.num_experts_per_tok} exceeds num_local_experts = {self.num_local_experts}",
        )
        _require(
            self.shared_intermediate_size == 0 or self.shared_moe_mode == "sigmoid",
            f"shared_moe_mode must be 'sigmoid', is {self.shared_moe_mode!r}",
        )

    @property
    def lightning_layers(self) -> tuple[int, ...]:
        """Indices of the lightning layers among all layers."""
        return tuple(i for i, kind in enumerate(self.attn_type_list) if kind == LIGHTNING)

    @property
    def softmax_layers(self) -> tuple[int, ...]:
        """Indices of the softmax layers among all layers."""
        return tuple(i for i, kind in enumerate(self.attn_type_list) if kind == SOFTMAX)

    def attention_factors(self, layer: int) -> tuple[float, float]:
        """(alpha, beta): weights of the residual and of the attention output in `layer`."""
        if self.attn_type_list[layer] == LIGHTNING:
            return self.layernorm_linear_attention_alpha, self.layernorm_linear_attention_beta
        return self.layernorm_full_attention_alpha, self.layernorm_full_attention_beta

    @classmethod
    def from_dict(cls, config: dict) -> "TextConfig":
        """Read either dialect; keys that mean nothing to the decoder are ignored.

        Raises ValueError on a missing key, and on settings that this decoder would compute wrongly.
        """
        native = "attn_type_list" not in config and "layer_types" in config
        activation = config.get("hidden_act", "silu")
        _require(activation == "silu", f"hidden_act must be silu, is {activation!r}")
        _require(config.get("sliding_window") is None, "sliding_window is not supported")
        values = {f.name: config[f.name] for f in fields(cls) if config.get(f.name) is not None}
        for f in fields(cls):
            if f.name in values and f.name != "shared_intermediate_size" and f.type in _KINDS:
                value, (kinds, wanted) = values[f.name], _KINDS[f.type]
                right = isinstance(value, kinds) and (f.type is bool or not isinstance(value, bool))
                _require(right, f"{f.name} must be {wanted}, is {value!r}")
        values["attn_type_list"] = _attention_types(config)
        missing = [name for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
                                     "intermediate_size", "num_local_experts", "num_experts_per_tok")
                   if name not in values]  # fmt: skip
        _require(not missing, f"the text config has no {', '.join(missing)}")
        values.setdefault("num_key_value_heads", values["num_attention_heads"])
        values.setdefault("head_dim", values["hidden_size"] // values["num_attention_heads"])
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        _require(kind == "default", f"rope type {kind!r} is not supported, only 'default'")
        if rope.get("rope_theta") is not None:
            values.setdefault("rope_theta", rope["rope_theta"])
        partial = config.get("partial_rotary_factor") or rope.get("partial_rotary_factor") or 1.0
        values.setdefault("rotary_dim", int(values["head_dim"] * partial))
        if native:
            values.setdefault("postnorm", True)
            for released, short in _NATIVE_FACTORS.items():
                for end in ("alpha", "beta"):
                    values.setdefault(f"{released}_{end}", config.get(f"{short}_{end}_factor", 1.0))
        shared = values.get("shared_intermediate_size", 0)
        if isinstance(shared, list | tuple):  # MiniMax-VL-01 writes [0]
            _require(len(set(shared)) <= 1, f"shared_intermediate_size differs between layers: {shared}")
            values["shared_intermediate_size"] = shared[0] if shared else 0
        if isinstance(values.get("eos_token_id"), list):
            values["eos_token_id"] = tuple(values["eos_token_id"])
        return cls(**values)

    def to_dict(self) -> dict:
        """The released dialect, ready for json."""
        config = {"model_type": "minimax_text_01", "architectures": ["MiniMaxText01ForCausalLM"], "hidden_act": "silu"}
        for name, value in asdict(self).items():
            config[name] = list(value) if isinstance(value, tuple) else value
        return config

    def to_native_dict(self) -> dict:
        """The native dialect, for transformers' MiniMaxConfig. It rotates whole heads, so rotary_dim must be head_dim.

        Raises ValueError for what transformers' `minimax` cannot express.
        """
        _require(self.rotary_dim == self.head_dim, "transformers' minimax rotates whole heads: rotary_dim != head_dim")
        _require(self.postnorm, "transformers' minimax is always post-norm: postnorm is false")
        _require(self.shared_intermediate_size == 0, "transformers' minimax has no shared expert")
        config = self.to_dict()
        for name in ("postnorm", "rotary_dim", "rope_theta", "shared_intermediate_size", "shared_moe_mode"):
            del config[name]
        names = {kind: name for name, kind in _LAYER_TYPES.items()}
        config["layer_types"] = [names[kind] for kind in config.pop("attn_type_list")]
        for released, short in _NATIVE_FACTORS.items():
            for end in ("alpha", "beta"):
                config[f"{short}_{end}_factor"] = config.pop(f"{released}_{end}")
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": self.rope_theta}
        return config | {"model_type": "minimax", "architectures": ["MiniMaxForCausalLM"], "block_size": 256}


def _attention_types(config: dict) -> tuple[int, ...]:
    if config.get("attn_type_list") is not None:
        return tuple(int(kind) for kind in config["attn_type_list"])
    names = config.get("layer_types")
    _require(names is not None, "the text config has neither attn_type_list nor layer_types")
    unknown = sorted(set(names) - set(_LAYER_TYPES))
    _require(not unknown, f"layer_types may hold only {', '.join(_LAYER_TYPES)}; found {', '.join(unknown)}")
    return tuple(_LAYER_TYPES[name] for name in names)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
