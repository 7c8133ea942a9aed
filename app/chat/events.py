"""What the parts of the chat page do: every event of a visitor, and what it changes on the page.

A session's conversation lives on the server and is changed in place; `view.py` draws the page from it.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path

import gradio as gr

from mmvl.app.chat.answer import Writing, seen_in
from mmvl.app.chat.attachments import Attachments, chosen_pages
from mmvl.app.chat.conversation import Attachment, Conversation, Turn
from mmvl.app.chat.edge import Told
from mmvl.app.chat.exchange import exported, imported, restored
from mmvl.app.chat.page import Parts
from mmvl.app.chat.picker import open_pdfs, reopen
from mmvl.app.chat.render import seen_html
from mmvl.app.chat.session import Session
from mmvl.app.chat.view import View
from mmvl.app.errors import one_line
from mmvl.app.pages import checked_question
from mmvl.app.server.service import Service

SAVED_EVERY = 30  # updates of an answer: two seconds
LAST_SENT = 0.1  # seconds in which Gradio surely sends an answer's last update
BUSY = "The answer before is still being written: press Stop first."


class Events:
    """The handlers. `connect` ties them to the parts of a page."""

    def __init__(self, parts: Parts, service: Service, attachments: Attachments):
        self.parts, self.service, self.attachments = parts, service, attachments
        self.view = View(parts, attachments)

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
        # "always_last" would send what the event before the last one said (Gradio 6.31).
        picking = {"concurrency_limit": None, "trigger_mode": "multiple"} | private
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
            raise Told("Write a question first.") from None
        files = await asyncio.to_thread(self._attach, said.get("files") or [], session)
        self._free(session)
        turn = session.talk.ask(question, files)
        session.pdfs = {}
        async for changes in self._write(session, turn, settings, clear=True):
            yield changes

    async def ask_example(self, example, session: Session, *settings) -> AsyncIterator[dict]:
        """In a chat of its own: an example stands for itself."""
        self._free(session)
        file = await asyncio.to_thread(self._attach_example, example.file)
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
            raise Told("This conversation is no longer here: reload the page.")
        match event._data.get("do"):
            case "seen":
                yield {parts.seen: await self._seen(talk, turn), parts.seen_side: gr.Sidebar(open=True)}
            case "show":
                self._free(session)
                talk.show(turn.id)
                await self._open_previews(talk)
                yield self.view.all(session) | self.view.kept(talk)
            case "edit":
                self._free(session)
                yield await self._edit(session, turn)
            case "again":
                self._free(session)
                async for changes in self._write(session, talk.again(turn.id), settings):
                    yield changes

    async def _write(self, session: Session, turn: Turn, settings: tuple, clear: bool = False) -> AsyncIterator[dict]:
        """Has a turn answered, and draws it as it grows.

        Gradio sends the last update twice, the second time whole: it must be one that the page can take twice. (Updates
        before are sent as changes to the one before, and the page may make them before it has drawn that one: what only
        one of two updates says can be lost on a busy machine.)
        """
        talk, parts = session.talk, self.parts
        system, *sampling = settings
        talk.system = system or ""
        sampling = sampling_of(dict(zip(parts.settings.sampling, sampling, strict=True)))
        writing = Writing(self.service, self.attachments, talk, turn, sampling)
        drawn = session.drawn = asyncio.Event()
        try:
            async for changes in self._updates(session, turn, writing, clear):
                yield changes
        finally:
            asyncio.get_running_loop().call_later(LAST_SENT, drawn.set)

    async def _updates(self, session: Session, turn: Turn, writing: Writing, clear: bool) -> AsyncIterator[dict]:
        talk, parts = session.talk, self.parts
        shown = ""
        async with aclosing(writing.run()) as updates:
            number = 0
            async for _ in updates:
                changes = {}
                if not number:
                    box = {"value": None} if clear else {}
                    changes = self.view.all(session) | self.view.kept(talk)
                    changes[parts.box] = gr.MultimodalTextbox(submit_btn=False, stop_btn=True, **box)
                    changes |= self.view.told("The model is answering.")
                elif number % SAVED_EVERY == 0:
                    changes = self.view.kept(talk)
                html = self.view.turn(talk, turn, writing.status)
                changes[parts.live] = gr.skip() if html == shown else html
                shown = html
                number += 1
                yield changes
        end = "The answer failed." if turn.error else "The answer is finished."
        yield self.view.all(session) | self.view.kept(talk) | self.view.told(end)

    async def stop(self, session: Session) -> None:
        session.talk.stop()

    # conversations

    async def new(self, session: Session) -> dict:
        """An empty chat; the one before is in the history."""
        await self._enter(session, Conversation())
        box = {self.parts.box: gr.MultimodalTextbox(value=None, submit_btn=True, stop_btn=False)}
        return self.view.all(session) | self.view.known(session.talk) | box

    async def open(self, session: Session, event: gr.EventData) -> dict:
        """A conversation of the browser's history, whose files it has uploaded."""
        said = event._data
        try:
            talk = await asyncio.to_thread(
                restored, self.attachments, said.get("record") or {}, said.get("paths") or {}
            )
        except (ValueError, OSError) as error:
            raise Told(one_line(error)) from None
        await self._enter(session, talk)
        return self.view.all(session) | self.view.known(talk) | {self.parts.settings.system: talk.system}

    async def load(self, path: str, session: Session) -> dict:
        """A file that `export` wrote."""
        try:
            talk = await asyncio.to_thread(imported, self.attachments, Path(path))
        except (ValueError, OSError) as error:
            raise Told(one_line(error)) from None
        await self._enter(session, talk)
        return self.view.all(session) | self.view.kept(talk) | {self.parts.settings.system: talk.system}

    async def export(self, kind: str, session: Session):
        talk = session.talk
        if not talk.turns:
            raise Told("There is nothing to export yet.")
        try:
            path = await asyncio.to_thread(exported, self.attachments, talk, kind)
        except OSError as error:
            raise Told(one_line(error)) from None
        return gr.DownloadButton(value=path)

    # the box

    async def cancel(self, session: Session) -> dict:
        """No editing after all."""
        session.talk.editing, session.pdfs = None, {}
        return self.view.all(session) | {self.parts.box: gr.MultimodalTextbox(value=None)}

    async def pick(self, session: Session, event: gr.EventData) -> AsyncIterator[str | dict]:
        """Other files lie in the box."""
        if not session.follows("files", event._data):
            return
        paths = [path for path in event._data.get("files") or [] if isinstance(path, str)]
        paths = [path for path in paths if self.attachments.is_here(path)]
        if opening := [Path(path).name for path in paths if path not in session.pdfs]:
            yield self.view.picker(session, opening)
        pdfs = await asyncio.to_thread(open_pdfs, self.attachments, paths, session.pdfs)
        if not session.follows("files", event._data):
            return
        session.pdfs = pdfs
        yield self.view.picker(session)
        yield gr.skip()  # Gradio sends the last update once more, when others may have followed

    async def choose(self, session: Session, event: gr.EventData) -> str:
        """Other pages of a PDF are wanted."""
        path = str(event._data.get("path"))
        pdf = session.pdfs.get(path)
        if pdf is not None and session.follows(path, event._data):
            try:
                pages = chosen_pages(str(event._data.get("pages")), pdf.count)
                if len(pages) > self.attachments.limits.pdf_pages:
                    raise ValueError(f"at most {self.attachments.limits.pdf_pages} pages of a PDF can be read")
                pdf.pages, pdf.error = pages, ""
            except ValueError as error:
                pdf.error = str(error)
        return self.view.picker(session)

    async def snap(self, picture: str | None, said: dict) -> dict:
        """The camera's picture goes into the box."""
        if picture is None:
            return {self.parts.camera: gr.skip()}
        box = {"text": said.get("text") or "", "files": [*(said.get("files") or []), picture]}
        return {self.parts.camera: None, self.parts.box: box}

    # what is behind them

    def _free(self, session: Session) -> None:
        if session.talk.busy:
            raise Told(BUSY)

    def _attach(self, paths: Sequence[str], session: Session) -> list[Attachment]:
        files = []
        for path in paths:
            pdf = session.pdfs.get(path)
            try:
                files.append(self.attachments.attach(path, pdf.pages if pdf else None))
            except (ValueError, OSError) as error:
                raise Told(one_line(error)) from None
        return files

    def _attach_example(self, file: Path) -> Attachment:
        return self.attachments.attach(self.attachments.store(file.read_bytes(), file.name))

    async def _edit(self, session: Session, turn: Turn) -> dict:
        parts, talk = self.parts, session.talk
        talk.editing = turn.id
        there = [file for file in turn.files if self.attachments.is_here(file.path)]
        pdfs = [file for file in there if file.pages]
        opened = await asyncio.gather(*(asyncio.to_thread(reopen, self.attachments, file) for file in pdfs))
        session.pdfs = {file.path: pdf for file, pdf in zip(pdfs, opened, strict=True)}
        box = {"text": turn.question, "files": [file.path for file in there]}
        return self.view.all(session) | {parts.box: gr.MultimodalTextbox(value=box)}

    async def _seen(self, talk: Conversation, turn: Turn) -> str:
        try:
            images, tokens = await asyncio.to_thread(seen_in, self.service, self.attachments, talk, turn)
        except (ValueError, OSError) as error:
            raise Told(one_line(error)) from None
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


def sampling_of(given: dict) -> dict:
    """What the settings' components say, as `SamplingParams` takes it."""
    whole = {name: int(given[name]) for name in ("max_tokens", "top_k")}
    parts = {name: float(given[name]) for name in ("temperature", "top_p", "min_p", "repetition_penalty")}
    seed = None if given["seed"] is None else int(given["seed"])
    return whole | parts | {"seed": seed, "stop": [line for line in (given["stop"] or "").splitlines() if line]}
