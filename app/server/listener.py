"""Takes a server's port before anything slow is done: that it is taken by another is told at once."""

import errno
import os
import socket

from mmvl.app.server.settings import ServerSettings


def bind(settings: ServerSettings) -> socket.socket:
    """Takes the settings' host and port for `run_app`; until that listens, connections are refused.

    Raises OSError if they cannot be had.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    taken = socket.socket(family)
    try:
        if os.name == "posix":  # elsewhere this would share the port with whoever has it
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # also right after an earlier server's end
        if family == socket.AF_INET6:
            taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        taken.bind((settings.host, settings.port))
    except OSError as error:
        taken.close()
        raise not_had(settings, error) from error
    return taken


def not_had(settings: ServerSettings, error: OSError) -> OSError:
    """The error to raise when the host and port cannot be had, and what to do."""
    where = f"[{settings.host}]:{settings.port}" if ":" in settings.host else f"{settings.host}:{settings.port}"
    if error.errno == errno.EADDRINUSE:
        why = "the port is taken; choose another one with --port, 0 for any that is free"
    elif error.errno == errno.EACCES:
        why = "this user may not take that port; choose one from 1024 on with --port"
    else:
        why = f"{error.strerror or error}; choose an address of this machine with --host"
    return OSError(f"no server at {where}: {why}")
