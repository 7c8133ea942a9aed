"""`/ask`: one question about files, for gradio_client; without a conversation."""

import gradio as gr

from mmvl.app.chat.answer import Writing
from mmvl.app.chat.attachments import Attachments
from mmvl.app.chat.conversation import Conversation
from mmvl.app.errors import one_line
from mmvl.app.pages import checked_question
from mmvl.app.server.service import Service


def add_api(service: Service, attachments: Attachments) -> None:
    """Adds the endpoint to the page that is being built."""

    async def ask(question: str, files: list[dict], max_tokens: int = 512, temperature: float = 0.0) -> str:
        """The answer to a question about pictures and PDFs, as it grows.

        files: what `gradio_client.handle_file` gives.
        """
        talk = Conversation()
        try:
            turn = talk.ask(checked_question(question), [attachments.attach(file["path"]) for file in files])
        except (ValueError, OSError) as error:
            raise gr.Error(one_line(error), print_exception=False) from None
        writing = Writing(service, attachments, talk, turn, {"max_tokens": max_tokens, "temperature": temperature})
        async for _ in writing.run():
            yield turn.answer
        if turn.error:
            raise gr.Error(turn.error, print_exception=False)
        yield turn.answer

    gr.api(ask, api_name="ask", concurrency_limit=None)
