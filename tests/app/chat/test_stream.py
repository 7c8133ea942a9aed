"""What is asked for is answered, at whatever moment: `stream.js` in a real browser, where the system has a Chromium."""

import pytest

from tests.app.chat.test_browser import CHROMIUM, WORDS, ask

# Below the page's own: an end of the stream comes 50 ms after the answer to the next event's question, or after 2 s.
LATE_ENDS = """
    const fetched = window.fetch;
    let known = () => {};
    window.late = 0;
    window.fetch = async (...asked) => {
        const address = String(asked[0]?.url ?? asked[0]);
        const reply = await fetched(...asked);
        if (address.includes("queue/join")) setTimeout(() => known(), 50);
        if (!address.includes("queue/data")) return reply;
        const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
        const body = new ReadableStream({
            async pull(to) {
                const { value, done } = await reader.read();
                if (done) return to.close();
                const end = value.includes('"close_stream"') ? value.lastIndexOf("data:") : value.length;
                if (end) to.enqueue(value.slice(0, end));
                if (end === value.length) return;
                window.late++;
                await new Promise((resolve) => { known = resolve; setTimeout(resolve, 2000); });
                to.enqueue(value.slice(end));
            },
        });
        const { status, headers } = reply;
        return new Response(body.pipeThrough(new TextEncoderStream()), { status, headers });
    };
"""


@pytest.fixture
def late_tab(context, url):
    """A tab that hears late that its stream of events has ended."""
    tab = context.new_page()
    tab.add_init_script(LATE_ENDS)
    tab.goto(url)
    return tab


if CHROMIUM:

    def test_a_question_is_answered_though_the_stream_ends_as_it_is_asked(late_tab, vlm):
        vlm.script = WORDS
        for number in range(3):
            ask(late_tab, f"Question {number}?")
        assert late_tab.evaluate("window.late") >= 2
        assert len(vlm.prompts) == 3

    def test_a_stream_without_events_ends(late_tab, vlm, until):
        vlm.script = WORDS
        late_tab.evaluate("""() => {
            const fetched = window.fetch;
            window.streams = 0;
            window.fetch = async (...asked) => {
                const reply = await fetched(...asked);
                if (!String(asked[0]?.url ?? asked[0]).includes("queue/data")) return reply;
                window.streams++;
                const [one, other] = reply.body.tee();
                other.pipeTo(new WritableStream()).finally(() => window.streams--);
                return new Response(one, { status: reply.status, headers: reply.headers });
            };
        }""")
        ask(late_tab, "What?")
        late_tab.wait_for_function("window.late > 0 && window.streams === 0")
