"""The official client against the server: everything that it may do, and what it makes of failures."""

import json

import openai
import pytest
import torch
from PIL import Image

from mmvl.vlm import user_turn

MODEL = "tiny"


@pytest.fixture(scope="module")
def client(server):
    with server.client() as client:
        yield client


def test_an_answer_is_the_models(server, client, asked):
    answer = client.chat.completions.create(**asked("Is there a circle?"))
    expected = server.vlm.chat(user_turn(None, "Is there a circle?"), max_tokens=8)
    (choice,) = answer.choices
    assert choice.message.role == "assistant" and choice.message.content == expected.text
    assert choice.finish_reason == expected.finish_reason and choice.index == 0 and choice.logprobs is None
    assert answer.object == "chat.completion" and answer.model == MODEL and answer.id.startswith("chatcmpl-")
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (expected.prompt_tokens, expected.completion_tokens)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_conversation_goes_on_with_what_the_client_got(client, asked):
    body = asked("First?")
    first = client.chat.completions.create(**body).choices[0].message
    messages = [{"role": "developer", "content": "Be brief."}, *body["messages"], first]
    messages += [{"role": "user", "content": "Second?"}]
    assert client.chat.completions.create(**body | {"messages": messages}).choices[0].finish_reason in (
        "stop",
        "length",
    )


def test_a_stream_gives_the_same_words_and_usage_at_its_end(client, asked):
    body = asked("Stream?", max_tokens=12, ignore_eos=True)
    extra = {"ignore_eos": body.pop("ignore_eos")}
    whole = client.chat.completions.create(**body, extra_body=extra)
    options = {"stream": True, "stream_options": {"include_usage": True}, "extra_body": extra}
    chunks = list(client.chat.completions.create(**body, **options))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert not chunks[-1].choices and chunks[-1].usage.completion_tokens == 12
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1
    without = list(client.chat.completions.create(**body, stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in without)


def test_images_and_their_tokens(server, client, asked, as_image, picture_path):
    picture = as_image(picture_path.read_bytes())
    answer = client.chat.completions.create(**asked("What?", picture, picture))
    expected = server.vlm.chat(user_turn([picture_path, picture_path], "What?"), max_tokens=8)
    assert answer.choices[0].message.content == expected.text
    details = answer.usage.prompt_tokens_details
    assert details.image_tokens == expected.image_tokens > 0
    assert details.text_tokens == expected.prompt_tokens - expected.image_tokens
    large = Image.new("RGB", (500, 500))
    tokens = [
        client.chat.completions.create(**asked("?", as_image(large, detail))).usage.prompt_tokens_details.image_tokens
        for detail in ("high", "low")
    ]
    assert tokens[1] < tokens[0]


def test_a_pdf_is_read_page_by_page(client, asked, as_file, two_pages):
    both = client.chat.completions.create(**asked("Read.", as_file(two_pages))).usage.prompt_tokens_details.image_tokens
    one = client.chat.completions.create(**asked("Read.", as_file(two_pages, pages="2")))
    assert both == 2 * one.usage.prompt_tokens_details.image_tokens > 0
    bare = as_file(two_pages)
    bare["file"]["file_data"] = bare["file"]["file_data"].partition(",")[2]
    again = client.chat.completions.create(**asked("Read.", bare)).usage.prompt_tokens_details.image_tokens
    assert again == both


def test_several_choices_seeds_and_stops(client, asked):
    body = asked("Write.", n=3, temperature=1.5, seed=-7, max_tokens=10)
    first, second = (client.chat.completions.create(**body) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in second.choices] and len(set(texts)) == 3
    streamed = [""] * 3
    for chunk in client.chat.completions.create(**body, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts
    stop = texts[0][2:4]
    alone = client.chat.completions.create(**body | {"n": 1, "stop": [stop]})
    assert alone.usage.prompt_tokens == first.usage.prompt_tokens, "a prompt counts once"
    stopped = alone.choices[0]
    assert stopped.finish_reason == "stop" and stopped.message.content == texts[0].partition(stop)[0]


def test_log_probabilities(client, asked):
    body = asked("Write.", logprobs=True, top_logprobs=2, max_tokens=4)
    (choice,) = client.chat.completions.create(**body).choices
    for token in choice.logprobs.content:
        assert token.logprob <= 0 and bytes(token.bytes).decode("utf-8", "replace") == token.token
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob), "greedy takes the likeliest"
        assert len(token.top_logprobs) == 2
    streamed = [c.choices[0].logprobs for c in client.chat.completions.create(**body, stream=True)]
    tokens = [token for logprobs in streamed if logprobs for token in logprobs.content]
    assert [token.token for token in tokens] == [token.token for token in choice.logprobs.content]


SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["circle", "square"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["kind", "count"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0, 1])
def test_json_that_keeps_to_a_schema(client, asked, temperature):
    wanted = {"type": "json_schema", "json_schema": {"name": "shape", "schema": SCHEMA, "strict": True}}
    body = asked("What is it?", response_format=wanted, max_tokens=60, temperature=temperature, n=4)
    for choice in client.chat.completions.create(**body).choices:
        answer = json.loads(choice.message.content)
        assert choice.finish_reason == "stop" and answer.keys() == {"kind", "count"}
        assert answer["kind"] in ("circle", "square") and 0 <= answer["count"] <= 99
    anything = client.chat.completions.create(**asked("JSON", response_format={"type": "json_object"}, max_tokens=20))
    assert anything.choices[0].message.content.startswith("{")


def test_a_schema_that_cannot_be_kept_to(client, asked):
    for schema in ({"type": "nonsense"}, {"not": {}}, {"$ref": "http://localhost/secret"}):
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(**asked("?", response_format=wanted))
        assert refused.value.code == "invalid_schema" and "nonsense" not in str(refused.value)


def test_text_completions(server, client):
    more = {"model": MODEL, "max_tokens": 5, "extra_body": {"ignore_eos": True}}
    answer = client.completions.create(prompt=["what is the", "Is there"], logprobs=1, n=2, **more)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3] and answer.object == "text_completion"
    assert answer.choices[0].text == answer.choices[1].text
    assert len(answer.choices[0].logprobs.tokens) == 5
    ids = server.vlm.processor.encode_text("what is the")
    assert client.completions.create(prompt=ids, **more).choices[0].text == answer.choices[0].text
    lists = client.completions.create(prompt=[ids, ids[:1]], **more).choices
    assert lists[0].text == answer.choices[0].text and len(lists) == 2
    for wrong in ([ids, [10**7]], [ids] * 9, [[]], [ids, "text"]):
        with pytest.raises(openai.BadRequestError) as refused:
            client.completions.create(prompt=wrong, **more)
        assert refused.value.param.startswith("prompt")
    stream = client.completions.create(prompt=ids, stream=True, **more)
    assert "".join(chunk.choices[0].text for chunk in stream) == answer.choices[0].text


def test_a_priority_reaches_the_engine(server, client, asked, monkeypatch):
    told, prepare = [], server.vlm.engine.prepare
    monkeypatch.setattr(server.vlm.engine, "prepare", lambda *args: told.append(args[-1]) or prepare(*args))
    client.chat.completions.create(**asked(n=2), extra_body={"priority": -5})
    client.completions.create(model=MODEL, prompt=["a", "b"], seed=1, max_tokens=1, extra_body={"priority": 7})
    client.chat.completions.create(**asked())
    assert told == [-5, -5, 7, 7, 0]


def test_models(client):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).object == "model"
    for ask in (lambda: client.models.retrieve("gpt"), lambda: client.completions.create(model="gpt", prompt="x")):
        with pytest.raises(openai.NotFoundError) as missing:
            ask()
        assert missing.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"n": 99}, "n"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"temperature": 3}, "temperature"),
        ({"extra_body": {"top_q": 1}}, "top_q"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
        ({"extra_body": {"stop_token_ids": [10**6]}}, "stop_token_ids"),
        ({"extra_body": {"min_tokens": 5}, "response_format": {"type": "json_object"}}, "response_format"),
        ({"extra_body": {"ignore_eos": True}, "response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(client, asked, more, param):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**asked() | more)
    assert refused.value.param == param and refused.value.type == "invalid_request_error"


def test_an_address_tells_which_methods_it_takes(server):
    answer = server.http.delete("/v1/models")
    assert answer.status_code == 405 and answer.headers["allow"] == "GET" and "error" in answer.json()


def test_a_prompt_longer_than_the_context(client, asked, as_image):
    for body in (
        asked("why? " * 300),
        asked("why? " * 10**6),
        asked("?", *[as_image(Image.new("RGB", (90, 90)))] * 40),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(**body)
        assert refused.value.code == "context_length_exceeded"


def test_it_tries_again_when_the_server_is_busy_or_ends_and_not_otherwise(serve, tiny, asked, as_image):
    with serve(tiny, max_requests=1, max_body_mb=1) as server:
        gate = server.service.gate

        def attempts(status: int, body: dict) -> int:
            before = server.metric("requests_refused_total", status=status)
            with server.client(max_retries=1) as client, pytest.raises(openai.APIStatusError) as refused:
                client.chat.completions.create(**body)
            assert refused.value.status_code == status
            return server.metric("requests_refused_total", status=status) - before

        gate.inside += 1
        assert attempts(429, asked()) == 2
        gate.inside -= 1
        assert attempts(422, asked("?", as_image(b"no image"))) == 1
        with server.client(max_retries=2) as client, pytest.raises(openai.APIStatusError) as refused:
            client.chat.completions.create(**asked("x" * (1 << 20)))
        assert refused.value.status_code == 413
        gate.draining = True
        assert attempts(503, asked()) == 2
        assert server.service.bodies.used == 0


def test_failures_of_the_engine_are_told_and_it_goes_on(serve, tiny, asked, monkeypatch):
    step, left = tiny.engine.step, iter(range(4))

    def failing_step():
        if next(left, None) is None:
            raise RuntimeError("secret detail")
        return step()

    def out_of_memory():
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    with serve(tiny) as server, server.client() as client:
        monkeypatch.setattr(tiny.engine, "step", failing_step)
        stream = client.chat.completions.create(
            **asked("?", max_tokens=50), extra_body={"ignore_eos": True}, stream=True
        )
        with pytest.raises(openai.APIError, match="failed on this request") as failure:
            list(stream)
        assert "secret" not in str(failure.value)
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(**asked())
        monkeypatch.setattr(tiny.engine, "step", out_of_memory)
        with pytest.raises(openai.InternalServerError) as failure:
            client.chat.completions.create(**asked())
        assert failure.value.status_code == 503 and failure.value.code == "out_of_memory"
        monkeypatch.undo()
        assert client.chat.completions.create(**asked()).choices and server.idle()
