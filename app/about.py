"""What is running: the one line about the model that the demo and the chat page show."""


def about(vlm) -> str:
    """Name, size, precision and device of an open `mmvl.VLM`."""
    parameters = sum(parameter.numel() for parameter in vlm.engine.model.parameters())
    size = f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.1f}M"
    dtype = str(vlm.dtype).removeprefix("torch.")
    return f"{vlm.directory.resolve().name} ({size} parameters, {dtype}) on {vlm.device}"
