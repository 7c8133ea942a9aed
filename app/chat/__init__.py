"""The chat page, on one server with the API: `mount_page(create_app(vlm, settings))` adds it."""

__all__ = ["mount_page"]


def __getattr__(name):
    """`from mmvl.app.chat import mount_page` without paying for Gradio where it is not used."""
    if name == "mount_page":
        from mmvl.app.chat.mount import mount_page

        return mount_page
    raise AttributeError(f"module 'mmvl.app.chat' has no attribute {name!r}")
