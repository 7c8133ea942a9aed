"""`/ask`: one question about files, for gradio_client; without a conversation."""

from collections.abc import AsyncIterator

import gradio as gr
from pydantic import BaseModel, StrictFloat, StrictInt, StrictStr, ValidationError

from mmvl.app.chat.answer import Writing
from mmvl.app.chat.attachments import Attachments
from mmvl.app.chat.conversation import Conversation
from mmvl.app.chat.edge import Told
from mmvl.app.errors import one_line
from mmvl.app.pages import checked_question
from mmvl.app.server.service import Service


class _File(BaseModel):
    path: StrictStr


class _Asked(BaseModel):
    """What `/ask` takes, which Gradio does not check."""

    question: StrictStr
    files: list[_File]
    max_tokens: StrictInt
    temperature: StrictInt | StrictFloat


def add_api(service: Service, attachments: Attachments) -> None:
    """Adds the endpoint to the page that is being built."""

    async def ask(
        question: str, files: list[dict], max_tokens: int = 512, temperature: float = 0.0
    ) -> AsyncIterator[str]:
        """The answer to a question about pictures and PDFs, as it grows.

        files: what `gradio_client.handle_file` gives.
        """
        try:
            asked = _Asked(question=question, files=files, max_tokens=max_tokens, temperature=temperature)
        except ValidationError as error:
            wrong = error.errors(include_input=False, include_url=False, include_context=False)[0]
            raise Told(f"{wrong['loc'][0]}: {wrong['msg']}.") from None
        talk = Conversation()
        try:
            turn = talk.ask(checked_question(asked.question), [attachments.attach(file.path) for file in asked.files])
        except (ValueError, OSError) as error:
            raise Told(one_line(error)) from None
        sampling = {"max_tokens": asked.max_tokens, "temperature": asked.temperature}
        writing = Writing(service, attachments, talk, turn, sampling)
        async for _ in writing.run():
            yield turn.answer
        if turn.error:
            raise Told(turn.error)
        yield turn.answer

    gr.api(ask, api_name="ask", concurrency_limit=None)
