"""What clients send: bodies of /v1/chat/completions and /v1/completions, checked.

Parameters of OpenAI's that mean nothing here are taken and have no effect; those that would change an answer in a way
that this server cannot are refused, and so is every name that nobody knows: nothing that was asked for is dropped in
silence. Beside OpenAI's own there are the settings that other servers of open models take as well (`top_k`, `min_p`,
`repetition_penalty`, `stop_token_ids`, `min_tokens`, `ignore_eos`, `priority`) and `pages` of a file.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, PlainValidator, Tag, model_validator
from pydantic_core import PydanticCustomError

MAX_MESSAGES, MAX_PARTS = 4096, 4096


def _refuse(value: Any) -> None:
    if value not in (None, [], {}, False):
        raise PydanticCustomError("unsupported", "this server does not support it")


def _kind(value: Any) -> str:
    """Which branch of a union a value belongs to, so that only that branch's findings are told."""
    if isinstance(value, str):
        return "str"
    return "ids" if isinstance(value, list) and value and isinstance(value[0], int) else "parts"


def _prompt_kind(value: Any) -> str:
    return "lists" if isinstance(value, list) and value and isinstance(value[0], list) else _kind(value)


def _contradiction(param: str, why: str) -> PydanticCustomError:
    return PydanticCustomError("contradiction", "{param} {why}", {"param": param, "why": why})


Unsupported = Annotated[Any, PlainValidator(_refuse, json_schema_input_type=None)]
WithoutEffect = Any


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)


class ImageUrl(_Strict):
    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class ImagePart(_Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


class FileData(_Strict):
    file_data: str | None = None
    filename: str | None = None
    file_id: Unsupported = None
    pages: Annotated[str, Field(max_length=200)] | None = None  # ours: only these, "1-3,7"


class FilePart(_Strict):
    type: Literal["file"]
    file: FileData


Part = Annotated[TextPart | ImagePart | FilePart, Field(discriminator="type")]
Text = Annotated[
    Annotated[str, Tag("str")] | Annotated[list[TextPart], Field(min_length=1, max_length=MAX_PARTS), Tag("parts")],
    Discriminator(_kind),
]
Content = Annotated[
    Annotated[str, Tag("str")] | Annotated[list[Part], Field(min_length=1, max_length=MAX_PARTS), Tag("parts")],
    Discriminator(_kind),
]


class SystemMessage(_Strict):
    role: Literal["system", "developer"]
    content: Text
    name: WithoutEffect = None


class UserMessage(_Strict):
    role: Literal["user"]
    content: Content
    name: WithoutEffect = None


class AssistantMessage(_Strict):
    """Takes back what an answer holds, whose unused fields are null."""

    role: Literal["assistant"]
    content: Text
    name: WithoutEffect = None
    refusal: Unsupported = None
    annotations: Unsupported = None
    audio: Unsupported = None
    function_call: Unsupported = None
    tool_calls: Unsupported = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class StreamOptions(_Strict):
    include_usage: bool | None = None
    include_obfuscation: WithoutEffect = None


class JsonSchema(_Strict):
    name: Annotated[str, Field(max_length=64)] = "answer"
    description: WithoutEffect = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: WithoutEffect = None  # it is always kept to


class TextFormat(_Strict):
    type: Literal["text"]


class JsonObjectFormat(_Strict):
    type: Literal["json_object"]


class JsonSchemaFormat(_Strict):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]
StopString = Annotated[str, Field(min_length=1, max_length=1000)]
Stop = Annotated[
    Annotated[StopString, Tag("str")] | Annotated[list[StopString], Field(max_length=16), Tag("parts")],
    Discriminator(_kind),
]
Tokens = Annotated[int, Field(ge=1, le=2**31)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class _Request(_Strict):
    """What both endpoints take."""

    model: Annotated[str, Field(max_length=256)]
    max_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] | None = None
    min_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    ignore_eos: bool | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None  # as in vLLM: lower ones run earlier

    logit_bias: Unsupported = None
    user: WithoutEffect = None

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> "_Request":
        if self.stream_options is not None and not self.stream:
            raise _contradiction("stream_options", "is for streams: set stream to true, or leave it out")
        return self

    def sampling(self, default_max_tokens: int) -> dict[str, Any]:
        """The fields of `mmvl.engine.SamplingParams` that this request sets; temperature is 0 if it does not say."""
        given = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": None if self.top_k is None else max(self.top_k, 0),
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "seed": None if self.seed is None else self.seed % 2**63,
            "stop": self.stop,
            "stop_token_ids": self.stop_token_ids,
            "min_tokens": self.min_tokens,
            "ignore_eos": self.ignore_eos,
            "logprobs": self.logprobs_wanted,
            "max_tokens": self.tokens_wanted or default_max_tokens,
        }
        return {name: value for name, value in given.items() if value is not None}

    @property
    def tokens_wanted(self) -> int | None:
        return self.max_tokens

    @property
    def logprobs_wanted(self) -> int | None:
        """How many of the likeliest tokens to name beside each token; None: no log probabilities."""
        raise NotImplementedError

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def usage_in_stream(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(_Request):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None

    tools: Unsupported = None
    functions: Unsupported = None
    function_call: Unsupported = None
    tool_choice: Literal["none", "auto"] | None = None
    modalities: list[Literal["text"]] | None = None
    audio: Unsupported = None
    prediction: Unsupported = None
    reasoning_effort: Unsupported = None
    verbosity: Unsupported = None
    web_search_options: Unsupported = None
    moderation: Unsupported = None

    metadata: WithoutEffect = None
    parallel_tool_calls: WithoutEffect = None
    prompt_cache_key: WithoutEffect = None
    prompt_cache_options: WithoutEffect = None
    prompt_cache_retention: WithoutEffect = None
    safety_identifier: WithoutEffect = None
    service_tier: WithoutEffect = None
    store: WithoutEffect = None

    @model_validator(mode="after")
    def _top_of_logprobs(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise _contradiction("top_logprobs", "needs logprobs: set that to true, or leave both out")
        return self

    @property
    def tokens_wanted(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def logprobs_wanted(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(_Request):
    """The body of POST /v1/completions: text or token ids that the model goes on with, as they are."""

    prompt: Annotated[
        Annotated[str, Tag("str")]
        | Annotated[list[str], Field(min_length=1, max_length=128), Tag("parts")]
        | Annotated[list[TokenId], Field(min_length=1), Tag("ids")]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(max_length=128), Tag("lists")],
        Discriminator(_prompt_kind),
    ]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: Unsupported = None
    suffix: Unsupported = None
    best_of: Unsupported = None

    @property
    def logprobs_wanted(self) -> int | None:
        return self.logprobs
