"""One visitor's conversation on the chat page: its turns, how the model reads them and how the page shows them.

The page shows escaped text; the model must read the text itself. So the turns are kept here, and the page's window is
only ever drawn from them.
"""

from dataclasses import dataclass, field
from pathlib import Path

from mmvl.app.pages import open_pages, user_turn
from mmvl.app.safe_text import for_browser


@dataclass
class Turn:
    """note: said under the answer, in small. error: why there is no answer; such a turn is not read by the model."""

    files: list[str]
    question: str
    answer: str = ""
    note: str = ""
    error: str = ""


@dataclass
class Conversation:
    """turns: oldest first. busy: an answer is being written. stop: the visitor wants it to end."""

    turns: list[Turn] = field(default_factory=list)
    busy: bool = False
    stop: bool = False

    def messages(self) -> list[dict]:
        """For the model: all turns, the last one still unanswered. PDFs become their pages.

        Raises ValueError or OSError naming a file that cannot be used.
        """
        messages = []
        for turn in (turn for turn in self.turns if not turn.error):
            messages.append(user_turn(open_pages(turn.files), turn.question))
            if turn is not self.turns[-1]:
                messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
        return messages

    def shown(self) -> list[dict]:
        """For gr.Chatbot: files, question and answer of each turn; nothing in it makes a browser fetch anything."""
        shown = []
        for turn in self.turns:
            shown += [{"role": "user", "content": {"path": file, "alt_text": Path(file).name}} for file in turn.files]
            shown.append({"role": "user", "content": for_browser(turn.question)})
            answer = for_browser(turn.error and f"⚠ {turn.error}" or turn.answer) or "…"
            shown.append({"role": "assistant", "content": f"{answer}\n\n*{turn.note}*" if turn.note else answer})
        return shown
