"""What is running and how fast: the lines about a model and an answer that the demo, `ask` and the chat page show."""


_ENDED = {"stop": "", "length": ", cut at the longest answer", "abort": ", stopped", "error": ", broken off"}


def about(vlm) -> str:
    """Name, size, precision and device of an open `mmvl.VLM`."""
    parameters = sum(parameter.numel() for parameter in vlm.engine.model.parameters())
    size = f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.1f}M"
    dtype = str(vlm.dtype).removeprefix("torch.")
    return f"{vlm.directory.resolve().name} ({size} parameters, {dtype}) on {vlm.device}"


def timings(answer) -> str:
    """One line: what was read, how long until the first token, the speed after it, and why it is not whole."""
    cached = f", {answer.cached_tokens} cached" if answer.cached_tokens else ""
    return (
        f"{answer.prompt_tokens} tokens read ({answer.image_tokens} of pictures{cached}) in "
        f"{answer.prefill_seconds:.2f} s, "
        f"{answer.completion_tokens} written{_speed(answer, ' at ', 1)}{_ENDED[answer.finish_reason]}"
    )


def summary(answer) -> str:
    """A few words for under an answer: how much, how fast, and why it ended if it is not whole."""
    written = "1 token" if answer.completion_tokens == 1 else f"{answer.completion_tokens} tokens"
    return f"{written}{_speed(answer, ', ', 0)}{_ENDED[answer.finish_reason]}"


def _speed(answer, before: str, decimals: int) -> str:
    """`before` and tokens/s after the first token, which prefill paid for; nothing if no second one came."""
    if answer.completion_tokens < 2 or answer.decode_seconds <= 0:
        return ""
    return f"{before}{(answer.completion_tokens - 1) / answer.decode_seconds:.{decimals}f} tokens/s"
