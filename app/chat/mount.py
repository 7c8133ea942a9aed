"""Puts the chat page on a server of `mmvl.app.server`: one engine, one port and one end for page and API."""

import asyncio
from pathlib import Path

import gradio as gr
from fastapi import FastAPI
from gradio.utils import get_upload_folder

from mmvl.app.chat import page as layout
from mmvl.app.chat.api import add_api
from mmvl.app.chat.attachments import Attachments
from mmvl.app.chat.edge import app_kwargs
from mmvl.app.chat.ending import EndingStreams, end_streams
from mmvl.app.chat.events import Events
from mmvl.app.chat.session import Session
from mmvl.app.csp import ContentSecurityPolicy
from mmvl.app.server.content import MediaLimits
from mmvl.app.server.service import Service

EVENTS_AT_ONCE = 1000  # of all visitors; what the engine takes on is the gate's to say


def mount_page(app: FastAPI) -> gr.Blocks:
    """The page at "/" of an application that `create_app` made and that does not run yet."""
    service: Service = app.state.service
    settings = service.settings
    uploads = Path(get_upload_folder())
    limits = MediaLimits.of(settings)
    attachments = Attachments(uploads, service.vlm.processor, limits, settings.decode_threads)
    blocks, parts = layout.build(service.vlm, Session(), uploads)
    with blocks:
        add_api(service, attachments)  # before the events, whose functions' names it would have to avoid
        Events(parts, service, attachments).connect()
    blocks.max_threads = EVENTS_AT_ONCE  # Gradio counts asynchronous events as if each needed a thread
    blocks.queue(max_size=EVENTS_AT_ONCE)
    blocks.temp_file_sets.append(attachments.stored)  # deleted as uploads are
    over = asyncio.Event()
    app.add_middleware(EndingStreams, over=over)
    app.add_middleware(ContentSecurityPolicy)
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        server_name=settings.host,
        server_port=settings.port,
        app_kwargs=app_kwargs(),
        theme=layout.THEME,
        # As `css`, styles would only hold below the sidebars' parent; as `js`, the stream's script would come too late.
        head=f"<style>{layout.asset('style.css')}</style><script>({layout.asset('stream.js')})()</script>",
        js=layout.asset("page.js"),
        max_file_size=f"{settings.max_body_mb}mb",
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
    )
    end_streams(app, service.gate, over)
    blocks.has_launched = True  # a mounted page never gets this mark, without which Gradio takes any path for its own
    return blocks
