"""The OpenAI-compatible server: `create_app(vlm, settings)` builds it, `run_app(app, settings)` serves it.

What needs no web framework (settings, protocol, content, replies, errors) can be imported without one: batch jobs read
the same requests from files.
"""

__all__ = ["ServerSettings", "create_app", "run_app"]


def __getattr__(name):
    """`from mmvl.app.server import create_app` without paying for FastAPI where it is not used."""
    if name == "ServerSettings":
        from mmvl.app.server.settings import ServerSettings

        return ServerSettings
    if name == "create_app":
        from mmvl.app.server.app import create_app

        return create_app
    if name == "run_app":
        from mmvl.app.server.run import run_app

        return run_app
    raise AttributeError(f"module 'mmvl.app.server' has no attribute {name!r}")
