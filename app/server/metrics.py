"""Numbers for Prometheus under vLLM's names with our prefix, so that its dashboards need that changed and no more.

Totals and gauges of the engine are read at each scrape; times are noted by the server as requests end.
"""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from mmvl.engine.request import Request
from mmvl.engine.stats import Stats

_TIMES = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
_COUNTS = tuple(digit * 10**power for power in range(7) for digit in (1, 2, 5))


class Metrics:
    """All metrics of one server. `stats` gives the engine's numbers, `waiting` requests that are not in it yet."""

    def __init__(self, model: str, stats: Callable[[], Stats], waiting: Callable[[], int]):
        self._registry = CollectorRegistry()
        self._registry.register(_EngineMetrics(model, stats, waiting))
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._model = model
        self._ttft = self._histogram("time_to_first_token_seconds", "From the request's arrival to its first token.")
        self._itl = self._histogram("inter_token_latency_seconds", "Between two pieces of an answer.")
        self._e2e = self._histogram("e2e_request_latency_seconds", "From a request's arrival to its end.")
        self._queue = self._histogram("request_queue_time_seconds", "Waiting for a place in the batch.")
        self._prefill = self._histogram("request_prefill_time_seconds", "From admission to the first token.")
        self._decode = self._histogram("request_decode_time_seconds", "From the first token to the last.")
        self._inference = self._histogram("request_inference_time_seconds", "From admission to the last token.")
        self._prompt = self._histogram("request_prompt_tokens", "Tokens of a prompt.", _COUNTS)
        self._generation = self._histogram("request_generation_tokens", "Tokens of an answer.", _COUNTS)
        self._max_tokens = self._histogram("request_params_max_tokens", "max_tokens of a request.", _COUNTS)
        self._n = self._histogram("request_params_n", "n of a request.", (1, 2, 5, 10, 20))
        self._refused = Counter(
            "mmvl:requests_refused",
            "Requests that ended in an error.",
            ["model_name", "status"],
            registry=self._registry,
        )

    def _histogram(self, name: str, text: str, buckets=_TIMES) -> Histogram:
        labelled = Histogram(f"mmvl:{name}", text, ["model_name"], buckets=buckets, registry=self._registry)
        return labelled.labels(self._model)

    def asked(self, max_tokens: int, choices: int) -> None:
        self._max_tokens.observe(max_tokens)
        self._n.observe(choices)

    def first_token(self, seconds: float) -> None:
        self._ttft.observe(seconds)

    def next_token(self, seconds: float) -> None:
        self._itl.observe(seconds)

    def answered(self, request: Request) -> None:
        """A request of the engine that is finished."""
        self._queue.observe(request.queued_seconds)
        self._prefill.observe(request.prefill_seconds)
        self._decode.observe(request.decode_seconds)
        self._inference.observe(request.prefill_seconds + request.decode_seconds)
        self._prompt.observe(request.prompt_tokens)
        self._generation.observe(request.completion_tokens)

    def ended(self, seconds: float) -> None:
        self._e2e.observe(seconds)

    def refused(self, status: int) -> None:
        self._refused.labels(self._model, str(status)).inc()

    def page(self, accept: str) -> tuple[bytes, str]:
        """What a scrape gets, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class _EngineMetrics:
    """The engine's numbers, read when asked."""

    def __init__(self, model: str, stats: Callable[[], Stats], waiting: Callable[[], int]):
        self._model, self._stats, self._waiting = model, stats, waiting

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        gauges = {
            "num_requests_running": ("Requests in the batch.", stats.running),
            "num_requests_waiting": ("Requests that wait for a place.", stats.waiting + self._waiting()),
            "kv_cache_usage_perc": ("Part of the KV pages in use; 1 is all.", stats.kv_pages_used / stats.kv_pages),
            "state_slots_usage_perc": ("Part of the state slots in use.", stats.state_slots_used / stats.state_slots),
        }
        counters = {
            "prefix_cache_queries": ("Prompt tokens looked up.", stats.prefix_query_tokens),
            "prefix_cache_hits": ("Prompt tokens found in the prefix cache.", stats.prefix_hit_tokens),
            "num_preemptions": ("Requests that were put back into the queue.", stats.preemptions_total),
            "prompt_tokens": ("Prompt tokens taken in.", stats.prompt_tokens_total),
            "generation_tokens": ("Tokens generated.", stats.generation_tokens_total),
            "spec_decode_num_draft_tokens": ("Tokens that were guessed ahead.", stats.draft_tokens_total),
            "spec_decode_num_accepted_tokens": ("Guesses that were right.", stats.draft_tokens_accepted),
        }
        for name, (text, value) in gauges.items():
            gauge = GaugeMetricFamily(f"mmvl:{name}", text, labels=["model_name"])
            gauge.add_metric([self._model], value)
            yield gauge
        for name, (text, value) in counters.items():
            counter = CounterMetricFamily(f"mmvl:{name}", text, labels=["model_name"])
            counter.add_metric([self._model], value)
            yield counter
        success = CounterMetricFamily(
            "mmvl:request_success", "Requests that ended, by reason.", labels=["model_name", "finished_reason"]
        )
        for reason in ("stop", "length", "abort", "error"):
            success.add_metric([self._model, reason], stats.finished_total.get(reason, 0))
        yield success
        config = GaugeMetricFamily(
            "mmvl:cache_config_info", "Sizes of the pools.", labels=["model_name", "num_kv_pages", "num_state_slots"]
        )
        config.add_metric([self._model, str(stats.kv_pages), str(stats.state_slots)], 1)
        yield config
