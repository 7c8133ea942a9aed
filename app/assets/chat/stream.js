() => {
  // A tab reads what its events give from one stream, which the server ends when no event is under way. What is asked
  // for at that very moment would be answered on a stream that nobody reads: the page takes the old one for open, and
  // is then told that it ended. So the end is passed on only if nothing was asked for meanwhile; else the stream is
  // asked for again, and goes on behind the same response.
  const fetched = window.fetch;
  const under_way = new Set(); // ids of events
  const early = new Set(); // of those that were completed before the answer to their question was here
  let asking = 0;

  async function ask(asked) {
    asking++;
    try {
      const reply = await fetched(...asked);
      if (reply.ok) {
        const { event_id } = await reply.clone().json();
        if (!early.delete(event_id)) under_way.add(event_id);
      }
      return reply;
    } finally {
      asking--;
    }
  }

  async function* messages(reply) {
    let text = "";
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return text && (yield text);
      const whole = (text + value).split("\n\n");
      text = whole.pop();
      for (const message of whole) yield message + "\n\n";
    }
  }

  // Whether a message ends the stream. Those of words are not parsed: in them, quotes are escaped.
  function ends(message) {
    if (!/"msg":"(process_completed|close_stream)"/.test(message)) return false;
    const { msg, event_id } = JSON.parse(message.slice("data:".length));
    if (msg === "process_completed" && !under_way.delete(event_id)) early.add(event_id);
    return msg === "close_stream";
  }

  async function* going_on(asked, reply) {
    for (;;) {
      let ended = "";
      for await (const message of messages(reply)) {
        if (ends(message)) ended = message;
        else yield message;
      }
      if (!ended) return;
      if (!asking && !under_way.size) return yield ended;
      reply = await fetched(...asked);
      if (!reply.ok) throw new Error(`the stream of events: ${reply.status}`);
    }
  }

  window.fetch = async (...asked) => {
    const { pathname } = new URL(asked[0]?.url ?? asked[0], location.href);
    if (pathname.endsWith("/queue/join")) return ask(asked);
    const reply = await fetched(...asked);
    if (!pathname.endsWith("/queue/data") || !reply.ok) return reply;
    const parts = going_on(asked, reply);
    const body = new ReadableStream({
      async pull(to) {
        const { value, done } = await parts.next();
        if (done) to.close();
        else to.enqueue(new TextEncoder().encode(value));
      },
      cancel: () => parts.return(),
    });
    return new Response(body, { status: reply.status, headers: reply.headers });
  };
}
