"""Requests of OpenAI batch files: their bodies opened as the server opens them, answers in the server's shape."""

import threading

from pydantic import ValidationError

from mmvl.app.errors import one_line
from mmvl.app.server.content import MediaLimits, open_messages, remote_urls
from mmvl.app.server.errors import ApiError, from_validation, invalid
from mmvl.app.server.json_grammar import Grammars
from mmvl.app.server.protocol import ChatRequest
from mmvl.app.server.replies import Choice, Reply, Usage
from mmvl.app.server.settings import ServerSettings


class ChatRequests:
    """Opens and answers for one model, called `name` in the answers. Results are {"status", "body"}."""

    def __init__(self, processor, name: str):
        settings = ServerSettings()
        self._limits, self._max_tokens = MediaLimits.of(settings), settings.default_max_tokens
        self._name = name
        self._grammars, self._compiling = Grammars(processor), threading.Lock()

    def open(self, body: dict) -> tuple[list[dict], dict] | dict:
        """(conversation, settings over those of the job), as `VLM.batch` takes it; or the result of a refusal."""
        try:
            try:
                request = ChatRequest.model_validate(body)
            except ValidationError as error:
                raise from_validation(error) from None
            if request.choices > 1 or request.logprobs_wanted is not None or request.stream:
                raise invalid("Batch files are answered without n, logprobs and stream.", code="unsupported_parameter")
            if remote_urls(request):
                raise invalid("Images are not fetched for batch files: send them as data: URLs.", "messages")
            sampling = request.sampling(self._max_tokens)
            with self._compiling:
                mask = self._grammars.mask(request.response_format)
            if mask is not None:
                sampling["logit_mask"] = mask
            return open_messages(request, self._limits), sampling
        except ApiError as error:
            return {"status": error.status, "body": error.body()}

    def result(self, answer) -> dict:
        """Of a `mmvl.vlm.Answer` or the exception that came instead."""
        if isinstance(answer, (ValueError, OSError)):
            return {"status": 400, "body": invalid(one_line(answer)).body()}
        if isinstance(answer, Exception):
            return {"status": 500, "body": ApiError(500, one_line(answer)).body()}
        choice = Choice(answer.text, answer.finish_reason, answer.completion_tokens)
        usage = Usage(answer.prompt_tokens, answer.completion_tokens, answer.image_tokens)
        return {"status": 200, "body": Reply(self._name, chat=True).whole([choice], usage)}
