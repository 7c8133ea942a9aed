"""What the parts of the chat page do: every event of a visitor, and what it changes on the page.

A session's conversation lives on the server and is changed in place; the page is only ever drawn from it.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache, save_file_to_cache

from mmvl.app.chat.answer import Writing, seen_in, without_paths
from mmvl.app.chat.attachments import Attachments, chosen_pages
from mmvl.app.chat.conversation import Attachment, Conversation, Turn, new_id
from mmvl.app.chat.page import Parts
from mmvl.app.chat.picker import Pdf, open_pdfs, picker_html, reopen
from mmvl.app.chat.record import SavedFile, conversation_of, read_record, record_of, to_json, unpack
from mmvl.app.chat.render import seen_html, turn_html, turns_html
from mmvl.app.chat.transcript import from_markdown, to_markdown
from mmvl.app.errors import one_line
from mmvl.app.pages import checked_question
from mmvl.app.server.service import Service

SAVED_EVERY = 30  # updates of an answer: two seconds
BUSY = "The answer before is still being written: press Stop first."


@dataclass
class Session:
    """One visitor's page. pdfs: those in the box, by their path. drawn: set once an answer's last update was sent."""

    _talk: Conversation | None = None
    pdfs: dict[str, Pdf] = field(default_factory=dict)
    drawn: asyncio.Event | None = None

    @property
    def talk(self) -> Conversation:
        if self._talk is None:  # not before: sessions begin as copies of one object, and ids must differ
            self._talk = Conversation()
        return self._talk

    @talk.setter
    def talk(self, talk: Conversation) -> None:
        self._talk = talk


class Events:
    """The handlers. `connect` ties them to the parts of a page."""

    def __init__(self, parts: Parts, service: Service, attachments: Attachments, folder: str):
        self.parts, self.service, self.attachments, self._folder = parts, service, attachments, folder

    def connect(self) -> None:
        parts = self.parts
        session, settings = parts.session, parts.settings.all
        drawn = [parts.past, parts.live, parts.told, parts.welcome, parts.box, parts.history, parts.editing]
        drawn += [parts.editing_text, parts.picker, parts.settings.system, parts.seen_side]
        private = {"show_progress": "hidden", "api_visibility": "private"}
        queued = {"outputs": drawn, "concurrency_limit": None} | private

        parts.box.submit(self.ask, [parts.box, session, *settings], **queued)
        for button, example in parts.examples:
            button.click(partial(self.ask_example, example), [session, *settings], **queued)
        for window in (parts.past, parts.live):
            window.select(self.act, [session, *settings], **(queued | {"outputs": [*drawn, parts.seen]}))
        parts.box.stop(self.stop, session, queue=False, **private)
        parts.new.click(self.new, session, **queued)
        parts.history.clear(self.new, session, **queued)
        parts.cancel.click(self.cancel, session, **queued)
        parts.history.select(self.open, session, **queued)
        parts.upload.upload(self.load, [parts.upload, session], **queued)
        for button, kind in ((parts.json, "json"), (parts.markdown, "md")):
            export = button.click(partial(self.export, kind), session, parts.download, **private)
            export.success(None, js="() => document.querySelector('#download').click()", **private)
        parts.box.change(None, parts.box, js="(box) => window.mmvlFiles?.(box)", **private)
        picking = {"concurrency_limit": None, "trigger_mode": "always_last"} | private
        parts.picker.select(self.pick, session, parts.picker, **picking)
        parts.picker.input(self.choose, session, parts.picker, **picking)
        parts.camera.input(self.snap, [parts.camera, parts.box], [parts.camera, parts.box], **private)
        parts.theme.click(None, js="() => window.mmvlTheme()", **private)

    # asking

    async def ask(self, said: dict, session: Session, *settings) -> AsyncIterator[dict]:
        """The question in the box, with its files."""
        self._free(session)
        try:
            question = checked_question(said.get("text") or "")
        except ValueError:
            raise gr.Error("Write a question first.", print_exception=False) from None
        files = await asyncio.to_thread(self._attach, said.get("files") or [], session)
        self._free(session)
        turn = session.talk.ask(question, files)
        session.pdfs = {}
        async for changes in self._write(session, turn, settings, clear=True):
            yield changes

    async def ask_example(self, example, session: Session, *settings) -> AsyncIterator[dict]:
        """In a chat of its own: an example stands for itself."""
        self._free(session)
        path = save_file_to_cache(example.file, cache_dir=self._folder)
        file = await asyncio.to_thread(self.attachments.attach, path)
        self._free(session)
        session.talk = Conversation()
        turn = session.talk.ask(example.question, [file])
        async for changes in self._write(session, turn, settings):
            yield changes

    async def act(self, session: Session, event: gr.EventData, *settings) -> AsyncIterator[dict]:
        """A button inside the conversation."""
        talk, parts = session.talk, self.parts
        turn = talk.turns.get(str(event._data.get("turn")))
        if turn is None:
            raise gr.Error("This conversation is no longer here: reload the page.", print_exception=False)
        match event._data.get("do"):
            case "seen":
                yield {parts.seen: await self._seen(talk, turn), parts.seen_side: gr.Sidebar(open=True)}
            case "show":
                self._free(session)
                talk.show(turn.id)
                await self._open_previews(talk)
                yield self._draw(session) | self._kept(talk)
            case "edit":
                self._free(session)
                yield await self._edit(session, turn)
            case "again":
                self._free(session)
                async for changes in self._write(session, talk.again(turn.id), settings):
                    yield changes

    async def _write(self, session: Session, turn: Turn, settings: tuple, clear: bool = False) -> AsyncIterator[dict]:
        """Has a turn answered, and draws it as it grows."""
        talk, parts = session.talk, self.parts
        system, *sampling = settings
        talk.system = system or ""
        sampling = sampling_of(dict(zip(parts.settings.sampling, sampling, strict=True)))
        writing = Writing(self.service, self.attachments, talk, turn, sampling)
        drawn = session.drawn = asyncio.Event()
        try:
            async for changes in self._updates(session, turn, writing, clear):
                yield changes
            yield {self.parts.live: gr.skip()}  # Gradio sends the last update once more, when others may have followed
        finally:
            drawn.set()

    async def _updates(self, session: Session, turn: Turn, writing: Writing, clear: bool) -> AsyncIterator[dict]:
        talk, parts = session.talk, self.parts
        shown = ""
        async with aclosing(writing.run()) as updates:
            number = 0
            async for _ in updates:
                changes = {}
                if not number:
                    box = {"value": None} if clear else {}
                    changes = self._draw(session) | self._kept(talk)
                    changes[parts.box] = gr.MultimodalTextbox(submit_btn=False, stop_btn=True, **box)
                    changes[parts.told] = _told("The model is answering.")
                elif number % SAVED_EVERY == 0:
                    changes = self._kept(talk)
                html = turn_html(talk, turn, self.attachments.opened, writing.status)
                changes[parts.live] = gr.skip() if html == shown else html
                shown = html
                number += 1
                yield changes
        end = "The answer failed." if turn.error else "The answer is finished."
        yield self._draw(session) | self._kept(talk) | {parts.told: _told(end)}

    async def stop(self, session: Session) -> None:
        session.talk.stop()

    # conversations

    async def new(self, session: Session) -> dict:
        """An empty chat; the one before is in the history."""
        await self._enter(session, Conversation())
        box = {self.parts.box: gr.MultimodalTextbox(value=None, submit_btn=True, stop_btn=False)}
        return self._draw(session) | self._known(session.talk) | box

    async def open(self, session: Session, event: gr.EventData) -> dict:
        """A conversation of the browser's history, whose files it has uploaded."""
        paths = event._data.get("paths") or {}
        try:
            record = read_record(event._data.get("record") or {})

            def path_of(file: SavedFile) -> str:
                path = paths.get(f"{file.digest}/{file.name}")
                if path is None:
                    return ""  # the browser has lost it; the words are still there
                if self.attachments.attach(path, file.pages).digest != file.digest:
                    raise ValueError(f"{file.name} is not what it was")
                return path

            talk = await asyncio.to_thread(conversation_of, record, path_of)
        except (ValueError, OSError) as error:
            raise gr.Error(one_line(error), print_exception=False) from None
        await self._enter(session, talk)
        return self._draw(session) | self._known(talk) | {self.parts.settings.system: talk.system}

    async def load(self, path: str, session: Session) -> dict:
        """A file that `export` wrote; it becomes a conversation of its own, whatever there is already."""
        try:
            talk = await asyncio.to_thread(self._load, Path(path))
        except (ValueError, OSError) as error:
            raise gr.Error(one_line(error).replace(path, Path(path).name), print_exception=False) from None
        await self._enter(session, talk)
        return self._draw(session) | self._kept(talk) | {self.parts.settings.system: talk.system}

    async def export(self, kind: str, session: Session):
        talk = session.talk
        if not talk.turns:
            raise gr.Error("There is nothing to export yet.", print_exception=False)
        try:
            text = await asyncio.to_thread(to_json if kind == "json" else to_markdown, talk)
        except OSError:
            raise gr.Error("A file of this chat is not here any more.", print_exception=False) from None
        name = "".join(c if c.isalnum() else "-" for c in talk.title).strip("-")[:40] or "chat"
        return gr.DownloadButton(value=save_bytes_to_cache(text.encode(), f"{name}.{kind}", self._folder))

    # the box

    async def cancel(self, session: Session) -> dict:
        """No editing after all."""
        session.talk.editing, session.pdfs = None, {}
        return self._draw(session) | {self.parts.box: gr.MultimodalTextbox(value=None)}

    async def pick(self, session: Session, event: gr.EventData) -> str:
        """Other files lie in the box."""
        paths = [path for path in event._data.get("files") or [] if isinstance(path, str)]
        paths = [path for path in paths if self.attachments.is_here(path)]
        session.pdfs = await asyncio.to_thread(open_pdfs, self.attachments, paths, session.pdfs)
        return self._picker(session)

    async def choose(self, session: Session, event: gr.EventData) -> str:
        """Other pages of a PDF are wanted."""
        pdf = session.pdfs.get(str(event._data.get("path")))
        if pdf is not None:
            try:
                pages = chosen_pages(str(event._data.get("pages")), pdf.count)
                if len(pages) > self.attachments.limits.pdf_pages:
                    raise ValueError(f"at most {self.attachments.limits.pdf_pages} pages of a PDF can be read")
                pdf.pages, pdf.error = pages, ""
            except ValueError as error:
                pdf.error = str(error)
        return self._picker(session)

    async def snap(self, picture: str | None, said: dict) -> dict:
        """The camera's picture goes into the box."""
        if picture is None:
            return {self.parts.camera: gr.skip()}
        box = {"text": said.get("text") or "", "files": [*(said.get("files") or []), picture]}
        return {self.parts.camera: None, self.parts.box: box}

    # what is behind them

    def _free(self, session: Session) -> None:
        if session.talk.busy:
            raise gr.Error(BUSY, print_exception=False)

    def _attach(self, paths: Sequence[str], session: Session) -> list[Attachment]:
        files = []
        for path in paths:
            pdf = session.pdfs.get(path)
            try:
                files.append(self.attachments.attach(path, pdf.pages if pdf else None))
            except (ValueError, OSError) as error:
                raise gr.Error(one_line(error).replace(path, Path(path).name), print_exception=False) from None
        return files

    async def _edit(self, session: Session, turn: Turn) -> dict:
        parts, talk = self.parts, session.talk
        talk.editing = turn.id
        there = [file for file in turn.files if self.attachments.is_here(file.path)]
        pdfs = [file for file in there if file.pages]
        opened = await asyncio.gather(*(asyncio.to_thread(reopen, self.attachments, file) for file in pdfs))
        session.pdfs = {file.path: pdf for file, pdf in zip(pdfs, opened, strict=True)}
        box = {"text": turn.question, "files": [file.path for file in there]}
        return self._draw(session) | {parts.box: gr.MultimodalTextbox(value=box)}

    async def _seen(self, talk: Conversation, turn: Turn) -> str:
        try:
            images, tokens = await asyncio.to_thread(seen_in, self.service, self.attachments, talk, turn)
        except (ValueError, OSError) as error:
            raise gr.Error(without_paths(one_line(error), turn.files), print_exception=False) from None
        cached = turn.numbers.cached_tokens if turn.numbers is not None else 0
        return seen_html(images, tokens, cached)

    async def _enter(self, session: Session, talk: Conversation) -> None:
        """Shows another conversation, once the page has all of an answer in the old one: it would be drawn over."""
        session.talk.stop()
        if session.drawn is not None:
            await session.drawn.wait()
        session.talk, session.pdfs = talk, {}
        await self._open_previews(talk)

    async def _open_previews(self, talk: Conversation) -> None:
        """So that files of the shown turns can be drawn. What cannot be opened is told when it is asked about."""

        def open_shown() -> None:
            for turn in talk.path():
                for file in turn.files:
                    try:
                        self.attachments.open(file)
                    except (ValueError, OSError):
                        continue

        await asyncio.to_thread(open_shown)

    def _load(self, path: Path) -> Conversation:
        def store(data: bytes, name: str) -> str:
            return save_bytes_to_cache(data, name, self._folder)

        def attach(data: bytes, name: str, pages: str | None) -> Attachment:
            return self.attachments.attach(store(data, name), chosen_pages(pages, 99_999) if pages else None)

        data = path.read_bytes()
        if path.suffix.lower() == ".md":
            return from_markdown(data.decode("utf-8", errors="replace"), attach)
        record = read_record(data)
        talk = conversation_of(record, unpack(record, store))
        talk.id = new_id()
        return talk

    def _draw(self, session: Session) -> dict:
        """The whole page as it is now, but for the box and what is in the history."""
        parts, talk = self.parts, session.talk
        path = talk.path()
        editing = talk.turns.get(talk.editing or "")
        number = len(talk.path(editing.id)) if editing else 0
        changes = {
            parts.past: turns_html(talk, path[:-1], self.attachments.opened),
            parts.live: turns_html(talk, path[-1:], self.attachments.opened),
            parts.welcome: gr.Column(visible=not path),
            parts.editing: gr.Row(visible=editing is not None),
            parts.editing_text: f"Editing question {number}: sending it begins a new branch." if editing else "",
            parts.picker: self._picker(session),
        }
        if not talk.busy:
            changes[parts.box] = gr.MultimodalTextbox(submit_btn=True, stop_btn=False)
        return changes

    def _picker(self, session: Session) -> str:
        return picker_html(session.pdfs, self.attachments.limits.pdf_pages)

    def _kept(self, talk: Conversation) -> dict:
        """Has the browser keep the conversation in its history."""
        files = {file.digest: file for turn in talk.turns.values() for file in turn.files if file.path}
        urls = [
            {"digest": file.digest, "name": file.name, "url": f"gradio_api/file={file.path}"} for file in files.values()
        ]
        keep = {"record": record_of(talk).model_dump(mode="json"), "files": urls}
        return {self.parts.history: {"id": talk.id, "keep": keep}}

    def _known(self, talk: Conversation) -> dict:
        """Tells the history which conversation is shown."""
        return {self.parts.history: {"id": talk.id, "keep": None}}


def sampling_of(given: dict) -> dict:
    """What the settings' components say, as `SamplingParams` takes it."""
    stop = [line for line in (given.pop("stop") or "").splitlines() if line]
    whole = {name: int(given.pop(name)) for name in ("max_tokens", "top_k")}
    seed = given.pop("seed")
    return given | whole | {"seed": None if seed is None else int(seed), "stop": stop}


def _told(text: str) -> str:
    return f'<p role="status">{text}</p>'
