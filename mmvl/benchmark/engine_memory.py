"""What a load needs of an engine's memory; what the engine reserves is the same for every load."""

from types import SimpleNamespace

from mmvl.engine import Engine
from mmvl.engine.memory import GIB, PAGE_SIZE, activation_bytes, bytes_of_state
from mmvl.text_backbone.key_store import bytes_of_token


def in_use(engine: Engine, lengths: tuple[int, ...]) -> dict[str, float | int]:
    """GiB of this rank, after prompts of these lengths were answered: `in_use_gib`, the sum of

    `weights_gib`; `pages_gib` and `states_gib`, the most pages and state slots that requests held at the same time
    since the counters were reset; `activations_gib`, as planned for the longest step, that of the prompts at once or as
    long as the engine makes it. `kv_pages` and `state_slots` are those most.
    """
    model, stats = engine.model, engine.stats()
    config = model.language_model.cache_config
    texts = SimpleNamespace(config=SimpleNamespace(text=model.config.text), dtype=model.dtype)  # no load has pictures
    parts = {
        "weights": sum(t.nbytes for t in (*model.parameters(), *model.buffers())),
        "pages": stats.kv_pages_most * PAGE_SIZE * bytes_of_token(config, engine.cache.kv_dtype),
        "states": stats.state_slots_most * bytes_of_state(config),
        "activations": activation_bytes(
            texts, min(sum(lengths), engine.pace.most), engine.expert_workspace, sampled=len(lengths),
            in_graphs=engine.graph_tokens,
        ),
    }  # fmt: skip
    gib = {f"{name}_gib": count / GIB for name, count in parts.items()}
    counts = {"kv_pages": stats.kv_pages_most, "state_slots": stats.state_slots_most}
    return {"in_use_gib": sum(gib.values()), **gib, **counts}
