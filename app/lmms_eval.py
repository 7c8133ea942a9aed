"""mmvl as a model of lmms-eval: `lmms-eval --model mmvl --model_args model=DIR`, found by its entry point.

Imported by lmms-eval only (the entry point group `lmms_eval.models`), which is then installed; mmvl does not need it.
"""

from collections.abc import Iterator, Sequence

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

MANIFEST = ModelManifest(model_id="mmvl", chat_class_path="mmvl.app.lmms_eval.MMVL")


class MMVL(lmms):
    """One engine that answers all requests of a task in one continuous batch.

    model: directory in Hugging Face layout; none: mmvl-tiny. max_sequences: answers at the same time.
    system_prompt: before every conversation. batch_size, max_batch_size: not needed, the engine fills itself.
    Raises ValueError for what `mmvl.VLM` refuses and for arguments that nobody knows.
    """

    is_simple = False

    def __init__(
        self,
        model: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        quantize: str | None = None,
        max_sequences: int = 32,
        system_prompt: str | None = None,
        batch_size=None,
        max_batch_size=None,
        **unknown,
    ):
        super().__init__()
        if unknown:
            known = "model, device, dtype, quantize, max_sequences, system_prompt"
            raise ValueError(f"mmvl has no model_args {', '.join(unknown)}; there are: {known}")
        from mmvl import VLM

        self._vlm = VLM(model, device=device, dtype=dtype, quantize=quantize, max_sequences=int(max_sequences))
        self._system = self._resolve_system_prompt(system_prompt or "")

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """An answer a request, in their order. ValueError where one cannot be answered, naming its document."""
        answers: list[GenerationResult | None] = [None] * len(requests)
        for index, answer in self._vlm.batch(map(self._conversation, requests)):
            if isinstance(answer, Exception):
                _, _, _, document, task, _ = requests[index].args
                raise ValueError(f"document {document} of {task}: {answer}") from answer
            counts = TokenCounts(input_tokens=answer.prompt_tokens, output_tokens=answer.completion_tokens)
            answers[index] = GenerationResult(answer.text, counts)
        return answers

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        raise NotImplementedError("mmvl answers lmms-eval's tasks of one round; this one has several")

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("mmvl generates answers; it does not score given ones: choose a generative task")

    def _conversation(self, request: Instance) -> tuple[list[dict], dict]:
        _, to_messages, settings, document, task, split = request.args
        asked = to_messages(self.task_dict[task][split][document])
        try:
            messages = [{"role": turn["role"], "content": list(_parts(turn["content"]))} for turn in asked]
        except ValueError as error:
            raise ValueError(f"document {document} of {task}: {error}") from None
        if self._system:
            messages.insert(0, {"role": "system", "content": self._system})
        return messages, sampling(settings)


def sampling(settings: dict) -> dict:
    """lmms-eval's generation_kwargs -> settings of `SamplingParams`. `do_sample: false` is greedy."""
    until = settings.get("until") or []
    given = {
        "max_tokens": settings.get("max_new_tokens"),
        "temperature": settings.get("temperature") if settings.get("do_sample", True) else 0.0,
        "top_p": settings.get("top_p") or None,
        "stop": [until] if isinstance(until, str) else list(until),
    }
    return {name: value for name, value in given.items() if value is not None}


def _parts(content: str | Sequence[dict]) -> Iterator[dict]:
    """The parts of a message as mmvl takes them. Raises ValueError for video and audio."""
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        if part["type"] == "text":
            yield {"type": "text", "text": part["text"]}
        elif part["type"] == "image":
            yield {"type": "image", "image": part["url"]}
        else:
            raise ValueError(f"mmvl reads images and text, no {part['type']}")
