// The history of conversations, kept in this browser alone: records and files in IndexedDB. gr.HTML runs this with
// `element`, `props`, `trigger`, `upload` and `watch`; the server sends what to keep as `props.value`.

const list = element.querySelector("ul");
const told = element.querySelector("p");
let opened = null; // id of the conversation that the page shows
const deleted = new Set(); // ids: the last update of an answer can come after its conversation was deleted

function database() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open("mmvl-chat", 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("talks", { keyPath: "id" });
      request.result.createObjectStore("files");
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function stores(mode, work) {
  const open = await database();
  try {
    const transaction = open.transaction(["talks", "files"], mode);
    const done = new Promise((resolve, reject) => {
      transaction.oncomplete = resolve;
      transaction.onerror = transaction.onabort = () => reject(transaction.error);
    });
    const result = await work(transaction.objectStore("talks"), transaction.objectStore("files"));
    await done;
    return result;
  } finally {
    open.close();
  }
}

function got(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

const digests = (record) => record.turns.flatMap((turn) => turn.files.map((file) => file.digest));

async function save({ record, files }) {
  if (deleted.has(record.id)) return;
  const known = new Set(await stores("readonly", (_, store) => got(store.getAllKeys())));
  const fetched = [];
  for (const file of files) {
    if (known.has(file.digest)) continue;
    const response = await fetch(file.url);
    if (!response.ok) throw new Error(`${file.name} could not be kept`);
    fetched.push([file.digest, await response.blob()]);
    known.add(file.digest);
  }
  await stores("readwrite", async (talks, store) => {
    for (const [digest, blob] of fetched) store.put(blob, digest);
    const kept = (await got(talks.get(record.id)))?.record.turns ?? [];
    const mine = new Set(record.turns.map((turn) => turn.id));
    record.turns.push(...kept.filter((turn) => !mine.has(turn.id))); // branches of another tab
    talks.put({ id: record.id, title: record.title, saved: Date.now(), record });
  });
  await changed();
}

async function open(id) {
  const { record, blobs } = await stores("readonly", async (talks, store) => {
    const talk = await got(talks.get(id));
    if (!talk) return {};
    const blobs = {};
    for (const digest of new Set(digests(talk.record))) blobs[digest] = await got(store.get(digest));
    return { record: talk.record, blobs };
  });
  if (!record) return;
  const paths = {};
  for (const file of record.turns.flatMap((turn) => turn.files)) {
    const key = `${file.digest}/${file.name}`;
    if (paths[key] || !blobs[file.digest]) continue;
    paths[key] = (await upload(new File([blobs[file.digest]], file.name))).path;
  }
  trigger("select", { record, paths });
}

async function forget(id) {
  deleted.add(id);
  await saving;
  await stores("readwrite", async (talks, store) => {
    await got(talks.delete(id));
    const left = new Set((await got(talks.getAll())).flatMap((talk) => digests(talk.record)));
    for (const digest of await got(store.getAllKeys())) if (!left.has(digest)) store.delete(digest);
  });
  if (id === opened) trigger("clear");
  await changed();
}

function button(label, text, work) {
  const made = document.createElement("button");
  made.type = "button";
  made.setAttribute("aria-label", label);
  made.title = label;
  made.textContent = text;
  made.onclick = () => guarded(work);
  return made;
}

async function draw() {
  const talks = await stores("readonly", (store) => got(store.getAll()));
  talks.sort((one, other) => other.saved - one.saved);
  const focused = document.activeElement?.closest("li")?.dataset.talk;
  list.replaceChildren(
    ...talks.map((talk) => {
      const item = document.createElement("li");
      item.dataset.talk = talk.id;
      const show = button(`Open: ${talk.title}`, talk.title, () => open(talk.id));
      if (talk.id === opened) show.setAttribute("aria-current", "true");
      item.append(show, button(`Delete: ${talk.title}`, "×", () => forget(talk.id)));
      return item;
    }),
  );
  if (focused) list.querySelector(`li[data-talk="${focused}"] button`)?.focus();
  told.textContent = talks.length ? "" : "Conversations are kept in this browser only.";
}

async function guarded(work) {
  try {
    await work();
  } catch (error) {
    told.textContent = `The history does not work here: ${error.message}`;
  }
}

const tabs = new BroadcastChannel("mmvl-chat");
tabs.onmessage = () => guarded(draw);

function changed() {
  tabs.postMessage(null);
  return draw();
}

let saving = Promise.resolve(); // one after the other: the last one wins
watch("value", () => {
  const { id, keep } = props.value;
  if (id !== opened) deleted.delete(id); // it was imported again
  opened = id;
  sessionStorage.setItem("mmvl-open", id);
  saving = saving.then(() => guarded(() => (keep ? save(keep) : draw())));
});

guarded(async () => {
  await draw();
  const last = sessionStorage.getItem("mmvl-open"); // of this tab: a reload goes on where it was
  if (last) await open(last);
});
