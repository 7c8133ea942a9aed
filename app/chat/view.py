"""A session on the page: values for its parts. The page is only ever drawn from the conversation."""

from collections.abc import Sequence
from urllib.parse import quote

import gradio as gr

from mmvl.app.chat.attachments import Attachments
from mmvl.app.chat.conversation import Conversation, Turn
from mmvl.app.chat.page import Parts
from mmvl.app.chat.picker import picker_html
from mmvl.app.chat.record import record_of
from mmvl.app.chat.render import turn_html, turns_html
from mmvl.app.chat.session import Session


class View:
    """What handlers return: a part -> what it becomes."""

    def __init__(self, parts: Parts, attachments: Attachments):
        self._parts, self._attachments = parts, attachments

    def all(self, session: Session) -> dict:
        """The whole page as it is now, but for the box's contents and what is in the history."""
        parts, talk = self._parts, session.talk
        path = talk.path()
        editing = talk.turns.get(talk.editing or "")
        number = len(talk.path(editing.id)) if editing else 0
        changes = {
            parts.past: turns_html(talk, path[:-1], self._attachments.opened),
            parts.live: turns_html(talk, path[-1:], self._attachments.opened),
            parts.welcome: gr.Column(visible=not path),
            parts.editing: gr.Row(visible=editing is not None),
            parts.editing_text: f"Editing question {number}: sending it begins a new branch." if editing else "",
            parts.picker: self.picker(session),
        }
        if not talk.busy:
            changes[parts.box] = gr.MultimodalTextbox(submit_btn=True, stop_btn=False)
        return changes

    def turn(self, talk: Conversation, turn: Turn, status: str) -> str:
        """HTML of a turn while it is answered."""
        return turn_html(talk, turn, self._attachments.opened, status)

    def picker(self, session: Session, opening: Sequence[str] = ()) -> str:
        """HTML of the page picker. opening: names of PDFs that are not in it yet."""
        return picker_html(session.pdfs, self._attachments.limits.pdf_pages, opening)

    def told(self, text: str) -> dict:
        """For those who hear the page."""
        return {self._parts.told: f'<p role="status">{text}</p>'}

    def kept(self, talk: Conversation) -> dict:
        """Has the browser keep the conversation in its history."""
        files = {file.digest: file for turn in talk.turns.values() for file in turn.files if file.path}
        urls = [
            {"digest": file.digest, "name": file.name, "url": f"gradio_api/file={quote(file.path)}"}
            for file in files.values()
        ]
        keep = {"record": record_of(talk).model_dump(mode="json"), "files": urls}
        return {self._parts.history: {"id": talk.id, "keep": keep}}

    def known(self, talk: Conversation) -> dict:
        """Tells the history which conversation is shown."""
        return {self._parts.history: {"id": talk.id, "keep": None}}
