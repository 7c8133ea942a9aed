"""The chat page, on one server with the API: `mount_page(create_app(vlm, settings))` adds it."""

import os

__all__ = ["mount_page"]

# Gradio reads these when it is imported. The page must work, and say nothing to anyone, without a network.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


def __getattr__(name):
    """`from mmvl.app.chat import mount_page` without paying for Gradio where it is not used."""
    if name == "mount_page":
        from mmvl.app.chat.mount import mount_page

        return mount_page
    raise AttributeError(f"module 'mmvl.app.chat' has no attribute {name!r}")
