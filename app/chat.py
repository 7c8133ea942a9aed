"""`mmvl chat`: the page where people upload pictures and PDFs and ask about them.

The page is drawn from a `Conversation`, which each visitor's session keeps on the server. Events change it and yield
what to draw; the one that answers looks at its `stop` flag 15 times a second, so Stop, Clear and a closed tab all end
the work of the engine at once.
"""

import os
import traceback

# Gradio reads these when it is imported. The page must work, and say nothing to anyone, without a network.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio as gr
from starlette.middleware import Middleware

from mmvl.app.about import about, summary
from mmvl.app.coalesce import coalesce
from mmvl.app.conversation import Conversation, Turn
from mmvl.app.csp import ContentSecurityPolicy
from mmvl.app.errors import one_line
from mmvl.app.examples import load_examples
from mmvl.app.pages import MEDIA_SUFFIXES, checked_question

MAX_FILE_SIZE = "32mb"
ANSWERS_AT_ONCE, ANSWERS_WAITING = 16, 64
# Where the columns fold, the window is above the examples and may be out of sight.
SHOW_WINDOW = "() => document.getElementById('window').scrollIntoView({behavior: 'smooth', block: 'nearest'})"
_PORT_HELP = "the port is taken or the address is not this machine's; choose others with --port and --host"
# No font of the theme comes from the network.
THEME = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
# Window, box and buttons fill the screen; where the columns fold, the examples below show that they are there.
# A refused question is told in the corner: without the rule on status-tracker it would also cover the conversation.
CSS = """
.gradio-container {max-width: 1200px !important; width: 100% !important; margin: 0 auto !important}
#window {height: max(320px, calc(100dvh - 180px)) !important}
@media (max-width: 768px) {#window {height: 60dvh !important}}
#window > [data-testid="status-tracker"]:has(.error) {display: none !important}
#window, #box {border: 1px solid var(--border-color-primary) !important}
#window .placeholder {padding: 0 24px; text-align: center}
#examples {gap: 8px}
#examples button {justify-content: flex-start; text-align: left; white-space: normal; gap: 12px; padding: 6px 8px}
#examples img {width: 52px; height: 52px; object-fit: contain; margin: 0}
#window .bot em:last-child {font-size: .8rem; opacity: .7}
footer, #window button[title="Share"], #window button[aria-label="Share"] {display: none !important}
"""


def serve(vlm, *, host: str, port: int, open_browser: bool) -> None:
    """Shows the page until Ctrl-C. port 0 is 7860 or the next free one. Raises OSError if the port cannot be had."""
    page = build_page(vlm)
    try:
        launch(page, server_name=host, server_port=port or None, inbrowser=open_browser, quiet=True)
    except OSError as error:
        raise OSError(f"no page at {host}:{port or '7860 and after'}: {_PORT_HELP}") from error
    print(f"The page is at {page.local_url} (Ctrl-C ends it)", flush=True)
    page.block_thread()


def launch(page: gr.Blocks, **settings) -> None:
    """Starts the page's server in a thread, with everything that must hold wherever it is started."""
    page.launch(
        prevent_thread_lock=True,
        theme=THEME,
        css=CSS,
        max_file_size=MAX_FILE_SIZE,
        allowed_paths=[str(example.file) for example in load_examples()],
        app_kwargs={"middleware": [Middleware(ContentSecurityPolicy)]},
        footer_links=[],
        share=False,
        ssr_mode=False,
        mcp_server=False,
        **settings,
    )


def build_page(vlm) -> gr.Blocks:
    """The page around an open `mmvl.VLM`; `launch` starts it."""
    examples = load_examples()
    # Uploads are of nobody's use after a day; looked for once an hour.
    with gr.Blocks(title="mmvl", analytics_enabled=False, fill_height=True, delete_cache=(3600, 86400)) as page:
        conversation = gr.State(Conversation())
        with gr.Row():
            with gr.Column(scale=3):
                window = gr.Chatbot(
                    show_label=False,
                    buttons=["copy"],
                    latex_delimiters=[],
                    feedback_options=None,
                    allow_file_downloads=False,
                    allow_tags=False,
                    placeholder="Add a picture or a PDF below and ask about it, or click an example.",
                    elem_id="window",
                )
                box = gr.MultimodalTextbox(
                    show_label=False,
                    placeholder="Ask about your files",
                    file_types=sorted(MEDIA_SUFFIXES),
                    file_count="multiple",
                    sources=["upload"],
                    max_plain_text_length=100_000,
                    autofocus=True,
                    elem_id="box",
                )
                with gr.Row():
                    stop = gr.Button("Stop", variant="stop", interactive=False, size="md", min_width=80, elem_id="stop")
                    clear = gr.Button("Clear", size="md", min_width=80, elem_id="clear")
            with gr.Column(scale=1, min_width=260):
                gr.Markdown(f"## mmvl\n{about(vlm)}\n\n**Examples**", elem_id="about")
                with gr.Column(elem_id="examples"):
                    buttons = [
                        gr.Button(example.question, icon=str(example.file), size="sm", elem_id=f"example-{number}")
                        for number, example in enumerate(examples)
                    ]
                with gr.Accordion("Settings", open=False):
                    max_tokens = gr.Slider(1, 2048, 256, step=1, label="Max tokens")
                    warmth = dict(label="Temperature", info="0: always the likeliest")
                    temperature = gr.Slider(0.0, 2.0, 0.0, step=0.05, **warmth)
                    top_p = gr.Slider(0.01, 1.0, 1.0, step=0.01, label="Top p")

        settings = [max_tokens, temperature, top_p]
        outputs = [window, box, stop]
        shared = dict(outputs=outputs, show_progress="hidden", concurrency_limit=ANSWERS_AT_ONCE, concurrency_id="all")

        def ask(said: dict, conversation: Conversation, max_tokens, temperature, top_p):
            sampling = {"max_tokens": int(max_tokens), "temperature": temperature, "top_p": top_p}
            yield from _answer(vlm, conversation, said.get("files") or [], said.get("text") or "", sampling)

        box.submit(ask, [box, conversation, *settings], api_name="ask", **shared)
        for button, example in zip(buttons, examples, strict=True):

            def ask_example(conversation: Conversation, max_tokens, temperature, top_p, example=example):
                if not conversation.busy:
                    conversation.turns.clear()  # an example stands for itself
                said = {"files": [str(example.file)], "text": example.question}
                yield from ask(said, conversation, max_tokens, temperature, top_p)

            button.click(ask_example, [conversation, *settings], api_visibility="private", **shared)
            button.click(None, js=SHOW_WINDOW, api_visibility="private")

        stop.click(_stop, conversation, api_name="stop", queue=False, show_progress="hidden")
        cleared = dict(outputs=outputs, queue=False, show_progress="hidden")
        clear.click(_clear, conversation, api_name="clear", **cleared)
        window.clear(_clear, conversation, api_visibility="private", **cleared)
    page.queue(max_size=ANSWERS_WAITING)
    return page


def _answer(vlm, conversation: Conversation, files: list[str], question: str, sampling: dict):
    """Adds a turn and writes its answer into it; yields the page's window, box and Stop button as it goes on."""
    if conversation.busy:
        raise gr.Error("The answer before is still being written: press Stop first.", print_exception=False)
    try:
        turn = Turn([_path(file) for file in files], checked_question(question))
    except ValueError:
        raise gr.Error("Write a question first.", print_exception=False) from None
    conversation.busy, conversation.stop = True, False
    conversation.turns.append(turn)
    try:
        yield conversation.shown(), gr.MultimodalTextbox(value=None, submit_btn=False), gr.Button(interactive=True)
        pieces = coalesce(vlm.stream(conversation.messages(), **sampling), lambda: conversation.stop)
        try:
            while True:
                if piece := next(pieces):
                    turn.answer += piece
                    yield conversation.shown(), gr.skip(), gr.skip()
                else:
                    yield gr.skip(), gr.skip(), gr.skip()
        except StopIteration as end:
            turn.note = summary(end.value)
        finally:
            pieces.close()
    except (ValueError, OSError) as error:
        # A file or question that cannot be used: say so in its place, and leave it out of what the model reads next.
        turn.error = one_line(error)
        for file in turn.files:  # the visitor knows it by its name, not by where the server keeps it
            turn.error = turn.error.replace(file, os.path.basename(file))
    except Exception as error:
        traceback.print_exc()
        turn.error = f"Something broke while answering ({type(error).__name__}); the server's log says where."
    finally:
        conversation.busy = False
    yield conversation.shown(), gr.MultimodalTextbox(submit_btn=True), gr.Button(interactive=False)


def _stop(conversation: Conversation) -> None:
    conversation.stop = True


def _clear(conversation: Conversation):
    conversation.stop = True
    conversation.turns.clear()
    return [], gr.MultimodalTextbox(value=None, submit_btn=True), gr.Button(interactive=False)


def _path(file) -> str:
    """A file of the box: a path from the page, a dict from the API."""
    return file["path"] if isinstance(file, dict) else file
