"""Messages -> token ids, tiled images and a loss mask; and back from ids to text.

A chat template (jinja2, as in tokenizer_config.json) decides the layout of the prompt. It is rendered with a stand-in
for every string that came with the messages, so that only what the template itself writes can be a special token:
`<image>` in a user's text stays text. Each image's placeholder then becomes as many image tokens as the image has.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import jinja2.ext
import jinja2.sandbox
from tokenizers import Tokenizer

from mmvl.chat_template import BOS, CHAT_TEMPLATE, END_OF_DOCUMENT, EOS, IMAGE
from mmvl.json_files import read_json, write_json
from mmvl.vision.config import TilingConfig
from mmvl.vision.images import open_image
from mmvl.vision.tiling import TiledImage, tile_image

ROLES = ("system", "user", "assistant", "function")

_MAX_CACHED = 4096
MOST_IDS = 1 << 24  # a tokenizer may leave ids out, but not so many that to list them takes the memory

# A stand-in is its number between two private-use characters, which no template writes.
_STAND_IN = re.compile("\ue000(\\d+)\ue001")


@dataclass
class Prompt:
    """What the model reads. token_ids and loss_mask have one entry a token; images are in order of appearance.

    An image of n tokens is n times the image token's id. loss_mask is True on what an assistant said, its
    end-of-sentence token included.
    """

    token_ids: list[int] = field(default_factory=list)
    images: list[TiledImage] = field(default_factory=list)
    loss_mask: list[bool] = field(default_factory=list)

    @property
    def image_bytes(self) -> int:
        """Memory of its decoded images."""
        return sum(image.tiles_N3TT.nbytes for image in self.images)

    def append(self, ids: Sequence[int], loss: bool) -> None:
        self.token_ids.extend(ids)
        self.loss_mask.extend([loss] * len(ids))


class Processor:
    """Tokenizer, chat template and tiling of one model. Safe to use from several threads and to send to workers.

    eos_ids: ids that end an answer; by default that of `<end_of_sentence>`.
    tokenizer_config: further keys of tokenizer_config.json, kept for `save`.

    `valid_vocab_size` is one more than the last id that has a token; of the ids before it `missing_ids` have none.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        tiling: TilingConfig,
        chat_template: str = CHAT_TEMPLATE,
        *,
        image_token: str = IMAGE,
        eos_ids: Sequence[int] | None = None,
        tokenizer_config: dict | None = None,
    ):
        self.tokenizer, self.tiling, self.chat_template = tokenizer, tiling, chat_template
        self.tokenizer_config = dict(tokenizer_config or {})
        self.image_token = image_token
        self._special_ids = {token.content: id for id, token in tokenizer.get_added_tokens_decoder().items()}
        self._split_special = re.compile("(" + "|".join(map(re.escape, sorted(self._special_ids, key=len)[::-1])) + ")")
        self._plain = _without_added_tokens(tokenizer)
        self._template = _compile(chat_template)
        # Layouts of conversations already seen, by shape; a template that calls for the time or chance is asked anew.
        self._layouts: dict[tuple, list[list[str]]] = {}
        self._short: dict[str, list[int]] = {}  # ids of short texts: headings and line breaks come again and again
        self._pure = not re.search(r"strftime|now\(|random|lipsum|cycler", chat_template)
        self.image_id = self._id(image_token)
        self.bos_id = self._id(_text(self.tokenizer_config.get("bos_token"), BOS))
        self.eos_id = self._id(_text(self.tokenizer_config.get("eos_token"), EOS))
        self.eos_ids = tuple(eos_ids) if eos_ids else (self.eos_id,)
        self.end_of_document_id = self._special_ids.get(END_OF_DOCUMENT)
        # the model's vocabulary may be padded beyond the last id that has a token, and ids before it may have none:
        # such must never be sampled
        ids = set(tokenizer.get_vocab(with_added_tokens=True).values())
        self.valid_vocab_size = max(ids) + 1
        if self.valid_vocab_size > MOST_IDS:
            raise ValueError(f"the tokenizer has a token of id {max(ids):,}; ids can go up to {MOST_IDS - 1:,}")
        self.missing_ids = tuple(sorted(set(range(self.valid_vocab_size)) - ids))

    def _id(self, token: str) -> int:
        if token not in self._special_ids:
            raise ValueError(f"the tokenizer has no special token {token!r}, which the prompt format needs")
        return self._special_ids[token]

    # -- files ------------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, directory) -> "Processor":
        """From a model directory: tokenizer.json, tokenizer_config.json, config.json, preprocessor_config.json.

        The chat template is tokenizer_config.json's, or chat_template.jinja's, or else the released format.
        """
        directory = Path(directory)
        config = read_json(directory / "config.json")
        tokenizer_config = read_json(directory / "tokenizer_config.json")
        tokenizer_file = directory / "tokenizer.json"
        if not tokenizer_file.is_file():
            raise FileNotFoundError(f"{directory} has no tokenizer.json")
        try:
            tokenizer = Tokenizer.from_file(str(tokenizer_file))
        except Exception:  # the only class of error that tokenizers raises
            raise ValueError(f"{tokenizer_file} is not a tokenizer file, or is damaged") from None
        template_file = directory / "chat_template.jinja"
        template = tokenizer_config.pop("chat_template", None)
        if template is None:
            template = template_file.read_text(encoding="utf-8") if template_file.is_file() else CHAT_TEMPLATE
        preprocessor = directory / "preprocessor_config.json"
        tiling = TilingConfig.from_dicts(config, read_json(preprocessor) if preprocessor.is_file() else None)
        eos = config.get("eos_token_id")
        if eos is None:
            eos = config.get("text_config", {}).get("eos_token_id")
        processor = cls(
            tokenizer,
            tiling,
            template,
            eos_ids=[eos] if isinstance(eos, int) else eos,
            tokenizer_config=tokenizer_config,
        )
        wanted = config.get("image_token_index", config.get("image_token_id", processor.image_id))
        if wanted != processor.image_id:
            raise ValueError(
                f"{directory}: config.json says image token {wanted}, the tokenizer says {processor.image_id}"
            )
        return processor

    def save(self, directory) -> None:
        """Write tokenizer.json, tokenizer_config.json and preprocessor_config.json; config.json is the model's."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(directory / "tokenizer.json"))
        defaults = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "unk_token": END_OF_DOCUMENT,
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
        }
        tokenizer_config = defaults | self.tokenizer_config | {"chat_template": self.chat_template}
        write_json(directory / "tokenizer_config.json", tokenizer_config)
        write_json(directory / "preprocessor_config.json", self.tiling.to_preprocessor_dict())

    # -- images and text --------------------------------------------------------------------------------------------

    def tile(self, images: Sequence) -> list[TiledImage]:
        """Paths, bytes or PIL images -> tiled images; what is tiled already passes through."""
        return [
            i if isinstance(i, TiledImage) else tile_image(open_image(i, keep_grey=True), self.tiling) for i in images
        ]

    def encode_text(self, text: str) -> list[int]:
        """Plain text -> ids; a special token's name in it is spelled out like any other text."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Ids -> text, without special tokens unless asked for."""
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special)

    def encode(
        self, messages: Sequence[dict], add_generation_prompt: bool = True, tools: Sequence[dict] | None = None
    ) -> Prompt:
        """A conversation -> Prompt.

        messages: `{"role": "system" | "user" | "assistant" | "function", "content": str or parts}`, a part being
        `{"type": "text", "text": str}` or `{"type": "image", "image": path, bytes, PIL image or TiledImage}`.
        add_generation_prompt: end with the opening of the assistant's next turn.

        Ids are those of the released processor, but for one case: what an assistant said is tokenised apart from the
        line break before it (they could merge if it began with white space), as it is when the model says it.
        Raises ValueError with one line for messages of another shape, and what `open_image` raises for images.
        """
        stand_ins, images = _StandIns(), []
        prepared = [_prepared(number, message, stand_ins, images) for number, message in enumerate(messages, 1)]
        if tools:
            pieces = self._split(self._render(prepared, stand_ins, add_generation_prompt, tools))
        else:
            # Strings are hidden from the template, so conversations of one shape are laid out alike.
            shape = (add_generation_prompt, *((m["role"], *(p["type"] for p in m["content"])) for m in prepared))
            pieces = self._layouts.get(shape)
            if pieces is None:
                pieces = self._split(self._render(prepared, stand_ins, add_generation_prompt, None))
                if self._pure and len(self._layouts) < _MAX_CACHED:
                    self._layouts[shape] = pieces
        return self._tokenize(pieces, stand_ins.strings, self.tile(images))

    def _render(self, prepared: list[dict], stand_ins: "_StandIns", add_generation_prompt: bool, tools) -> str:
        try:
            return self._template.render(
                messages=prepared,
                tools=[stand_ins.inside(tool) for tool in tools or ()] or None,
                add_generation_prompt=add_generation_prompt,
                stand_ins=stand_ins,
            )
        except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError) as error:
            raise ValueError(f"the chat template fails on these messages: {error}") from error

    def _split(self, text: str) -> list[list[str]]:
        """Text cut at special tokens: one of these alone, or text split at stand-ins (at odd places their numbers)."""
        pieces = self._split_special.split(text)
        return [[piece] if piece in self._special_ids else _STAND_IN.split(piece) for piece in pieces if piece]

    def encode_raw(self, text: str, images: Sequence = ()) -> Prompt:
        """A prompt written out by the caller, special tokens and one `<image>` an image included -> Prompt.

        Do not put strangers' text into it: here special strings are special. loss_mask is False throughout.
        """
        pieces = [[piece] for piece in self._split_special.split(text)]
        return self._tokenize(pieces, [], self.tile(images))

    def _tokenize(self, pieces: list[list[str]], strings: list[tuple[str, bool]], images: list[TiledImage]) -> Prompt:
        prompt = Prompt(images=images)
        seen = 0  # placeholders so far
        plain = ""  # text since the last special token or assistant's word, not yet tokenised
        answering = False  # inside what an assistant says

        def flush():
            nonlocal plain
            if plain:
                ids = self._short.get(plain)
                if ids is None:
                    ids = self.encode_text(plain)
                    if len(plain) <= 40 and len(self._short) < _MAX_CACHED:
                        self._short[plain] = ids
                prompt.append(ids, answering)
            plain = ""

        for parts in pieces:
            piece = parts[0]
            if len(parts) > 1 or piece not in self._special_ids:
                # odd places hold the numbers of stand-ins
                for place, part in enumerate(parts):
                    string, loss = strings[int(part)] if place % 2 else (part, False)
                    if loss != answering and (string or loss):
                        flush()
                        answering = loss
                    plain += string
                continue
            flush()
            if piece == self.image_token:
                if seen < len(images):
                    prompt.append([self.image_id] * images[seen].num_tokens, False)
                seen += 1
            else:
                ends = self._special_ids[piece] == self.eos_id
                prompt.append([self._special_ids[piece]], answering and ends)
                answering = False
        flush()
        if seen != len(images):
            raise ValueError(
                f"the prompt has {seen} {self.image_token} placeholder{'s' * (seen != 1)} for {len(images)} "
                f"image{'s' * (len(images) != 1)}: there must be one for each"
            )
        return prompt

    # the compiled template cannot be pickled; it is made anew on the other side
    def __getstate__(self):
        return {k: v for k, v in self.__dict__.items() if k not in ("_template", "_layouts", "_short")}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._template, self._layouts, self._short = _compile(self.chat_template), {}, {}


class _StandIns:
    """The strings that came with a conversation: (text, whether an assistant said it), and what stands for them."""

    def __init__(self):
        self.strings: list[tuple[str, bool]] = []

    def put(self, text: str, loss: bool = False) -> str:
        self.strings.append((text, loss))
        return f"\ue000{len(self.strings) - 1}\ue001"

    def inside(self, value):
        """Any JSON value with a stand-in for every string in it."""
        if isinstance(value, dict):
            return {self.put(key): self.inside(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.inside(item) for item in value]
        return self.put(value) if isinstance(value, str) else value

    def json(self, value, **options) -> str:
        """`value` as JSON, under one stand-in; the strings in it are written as JSON writes them."""
        text = json.dumps(value, **({"ensure_ascii": False} | options))
        dumped = _STAND_IN.sub(lambda m: json.dumps(self.strings[int(m[1])][0], ensure_ascii=False)[1:-1], text)
        return self.put(dumped)


@jinja2.pass_context
def _to_json(context, value, **options) -> str:
    return context["stand_ins"].json(value, **options)


def _prepared(number: int, message: dict, stand_ins: _StandIns, images: list) -> dict:
    """Check message `number` (from 1); put stand-ins for its strings and move its images to `images`."""
    role = message.get("role") if isinstance(message, dict) else None
    if role not in ROLES:
        raise ValueError(f"message {number}: the role is {role!r}, it must be one of {', '.join(ROLES)}")
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list | tuple):
        raise ValueError(f"message {number}: the content must be text or a list of parts")
    loss = role == "assistant"
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            parts.append({"type": "text", "text": stand_ins.put(part["text"], loss)})
        elif kind == "image" and part.get("image") is not None and role != "function":
            images.append(part["image"])
            parts.append({"type": "image"})
        else:
            given = f"{kind!r} without it" if kind in ("text", "image") and role != "function" else repr(kind)
            raise ValueError(
                f"message {number}: a part must be a text with its 'text' or an image with its 'image', not {given}"
            )
    if loss and not (parts and parts[-1]["type"] == "text"):
        parts.append({"type": "text", "text": stand_ins.put("", True)})  # so that the turn's end counts as said
    prepared = {"role": role, "content": parts}
    if role == "function":
        if not isinstance(message.get("name"), str) or len(parts) != 1:
            raise ValueError(f"message {number}: a function's answer needs a 'name' and one text")
        prepared["name"] = stand_ins.put(message["name"])
    return prepared


class _Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}`, which templates put around what a model says: the body as it is."""

    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: str):
    raise ValueError(f"the chat template refuses these messages: {message}")


def _compile(source: str) -> jinja2.Template:
    # sandboxed: a chat template comes with a checkpoint, from a stranger
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"the chat template does not compile: line {error.lineno}: {error.message}") from None


def _without_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer with no text that is special to it."""
    settings = json.loads(tokenizer.to_str())
    for token in settings["added_tokens"]:
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise ValueError(f"the special token {token['content']!r} eats its surroundings: not supported")
    settings |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    return Tokenizer.from_str(json.dumps(settings))


def _text(token, default: str) -> str:
    """A token of tokenizer_config.json, which is a string or a dict with its `content`."""
    return (token["content"] if isinstance(token, dict) else token) or default
