"""What is running and how fast: the lines about a model and an answer that the demo, `ask` and the chat page show."""


def about(vlm) -> str:
    """Name, size, precision and device of an open `mmvl.VLM`."""
    parameters = sum(parameter.numel() for parameter in vlm.engine.model.parameters())
    size = f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.1f}M"
    dtype = str(vlm.dtype).removeprefix("torch.")
    return f"{vlm.directory.resolve().name} ({size} parameters, {dtype}) on {vlm.device}"


def timings(answer) -> str:
    """One line: what was read, how long until the first token, and the speed after it."""
    return (
        f"{answer.prompt_tokens} tokens read ({answer.image_tokens} of pictures) in {answer.prefill_seconds:.2f} s, "
        f"{answer.completion_tokens} written at {_speed(answer):.1f} tokens/s, ended by {answer.finish_reason}"
    )


def summary(answer) -> str:
    """A few words for under an answer: how much, how fast, and why it ended if it is not whole."""
    ended = {"stop": "", "length": ", cut at the longest answer", "abort": ", stopped"}[answer.finish_reason]
    return f"{answer.completion_tokens} tokens, {_speed(answer):.0f} tokens/s{ended}"


def _speed(answer) -> float:
    """Tokens/s after the first token, which prefill paid for."""
    return max(answer.completion_tokens - 1, 0) / answer.decode_seconds if answer.decode_seconds > 0 else 0.0
