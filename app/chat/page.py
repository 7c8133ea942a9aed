"""What the chat page is made of: its parts and where they stand. What they do is in `events.py`."""

from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from mmvl.app.about import about
from mmvl.app.chat.edge import StrictBlocks
from mmvl.app.examples import Example, load_examples
from mmvl.app.pages import MEDIA_SUFFIXES

ASSETS = Path(__file__).parent.parent / "assets" / "chat"
# No font of the theme comes from the network.
THEME = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]).set(
    block_title_background_fill="none",
    block_title_background_fill_dark="none",
    block_title_text_color="*body_text_color",
    block_title_text_color_dark="*body_text_color",
    block_title_padding="0",
)
DAY, HOUR = 86_400, 3_600


def asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Parts:
    """The components that events read and change."""

    session: gr.State
    new: gr.Button
    history: gr.HTML
    settings: "Settings"
    json: gr.Button
    markdown: gr.Button
    upload: gr.UploadButton
    download: gr.DownloadButton
    theme: gr.Button
    welcome: gr.Column
    examples: list[tuple[gr.Button, Example]]
    past: gr.HTML
    live: gr.HTML
    told: gr.HTML
    editing: gr.Row
    editing_text: gr.Markdown
    cancel: gr.Button
    picker: gr.HTML
    box: gr.MultimodalTextbox
    camera: gr.Image
    seen_side: gr.Sidebar
    seen: gr.HTML


@dataclass(frozen=True)
class Settings:
    """The system prompt, and how tokens are chosen; `sampling` has the names of `SamplingParams`."""

    system: gr.Textbox
    sampling: dict[str, gr.components.Component]

    @property
    def all(self) -> list[gr.components.Component]:
        return [self.system, *self.sampling.values()]


def build(vlm, session, uploads: Path) -> tuple[StrictBlocks, Parts]:
    """The page around an open `mmvl.VLM`, without any event. session: what each visitor's state begins as."""
    # Uploads are of nobody's use after a day; looked for once an hour.
    page = StrictBlocks(
        uploads=uploads, title="mmvl", analytics_enabled=False, fill_height=True, delete_cache=(HOUR, DAY)
    )
    with page:
        parts = {"session": gr.State(session)}
        with gr.Sidebar(label="Chats and settings", elem_id="side", width=300):
            parts |= _side(vlm)
        with gr.Column(elem_id="main"):
            parts |= _window()
            parts |= _below()
        with gr.Sidebar(
            label="What the model saw", position="right", open=False, width="min(420px, 100vw)", elem_id="seen-side"
        ) as seen_side:
            gr.Markdown("## What the model saw")
            seen = gr.HTML(elem_id="seen", apply_default_css=False)
        parts |= {"seen_side": seen_side, "seen": seen}
    return page, Parts(**parts)


def _side(vlm) -> dict:
    gr.Markdown(f"# mmvl\n{about(vlm)}", elem_id="about")
    new = gr.Button("New chat", size="md", elem_id="new")
    history = gr.HTML(
        {"id": "", "keep": None},
        html_template='<nav aria-label="History"><ul></ul><p role="status"></p></nav>',
        js_on_load=asset("history.js"),
        apply_default_css=False,
        elem_id="history",
    )
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        settings = _settings()
    with gr.Accordion("Export and import", open=False, elem_id="files"):
        json = gr.Button("Export as JSON", size="sm", elem_id="export-json")
        markdown = gr.Button("Export as Markdown", size="sm", elem_id="export-markdown")
        upload = gr.UploadButton("Import", file_types=[".json", ".md"], size="sm", elem_id="import")
        download = gr.DownloadButton("Download", visible="hidden", elem_id="download")
    theme = gr.Button("Dark or light", size="sm", elem_id="theme")
    return {
        "new": new,
        "history": history,
        "settings": settings,
        "json": json,
        "markdown": markdown,
        "upload": upload,
        "download": download,
        "theme": theme,
    }


def _settings() -> Settings:
    system = gr.Textbox(label="System prompt", info="What the model is told before the conversation", lines=3)
    sampling = {
        "max_tokens": gr.Slider(1, 4096, 512, step=1, label="Max tokens", info="Longest answer"),
        "temperature": gr.Slider(0.0, 2.0, 0.0, step=0.05, label="Temperature", info="0: always the likeliest"),
        "top_p": gr.Slider(0.01, 1.0, 1.0, step=0.01, label="Top p", info="Keep this probability; 1: off"),
        "top_k": gr.Slider(0, 200, 0, step=1, label="Top k", info="Keep so many tokens; 0: off"),
        "min_p": gr.Slider(0.0, 1.0, 0.0, step=0.01, label="Min p", info="Relative to the likeliest; 0: off"),
        "repetition_penalty": gr.Slider(
            0.5, 2.0, 1.0, step=0.01, label="Repetition penalty", info="Above 1 discourages repeats"
        ),
        "seed": gr.Number(None, label="Seed", info="Makes sampling repeatable; empty: none", precision=0, minimum=0),
        "stop": gr.Textbox(label="Stop texts", info="The answer ends before one of these; one a line", lines=2),
    }
    return Settings(system, sampling)


def _window() -> dict:
    with gr.Column(elem_id="window"):
        with gr.Column(elem_id="welcome") as welcome:
            gr.Markdown("### Ask about pictures and PDFs\nDrop, paste or attach files below, or try an example:")
            with gr.Row(elem_id="examples"):
                examples = [(_example(example, number), example) for number, example in enumerate(load_examples())]
        window = {"js_on_load": asset("window.js"), "apply_default_css": False}
        past = gr.HTML("", elem_id="past", **window)
        live = gr.HTML("", elem_id="live", **window)
    told = gr.HTML('<p role="status"></p>', elem_id="told", apply_default_css=False)
    return {"welcome": welcome, "examples": examples, "past": past, "live": live, "told": told}


def _example(example: Example, number: int) -> gr.Button:
    return gr.Button(example.question, icon=str(example.file), size="sm", min_width=160, elem_id=f"example-{number}")


def _below() -> dict:
    with gr.Row(visible=False, elem_id="editing") as editing:
        editing_text = gr.Markdown("")
        cancel = gr.Button("Cancel", size="sm", min_width=80, scale=0, elem_id="cancel")
    picker = gr.HTML("", elem_id="picker", js_on_load=asset("picker.js"), apply_default_css=False)
    box = gr.MultimodalTextbox(
        label="Question",
        show_label=False,
        placeholder="Ask about your files",
        file_types=sorted(MEDIA_SUFFIXES),
        file_count="multiple",
        sources=["upload"],
        max_plain_text_length=100_000,
        autofocus=True,
        elem_id="box",
    )
    with gr.Accordion("Camera", open=False, elem_id="camera"):
        camera = gr.Image(sources=["webcam"], type="filepath", label="Take a picture", height=320)
    return {
        "editing": editing,
        "editing_text": editing_text,
        "cancel": cancel,
        "picker": picker,
        "box": box,
        "camera": camera,
    }
