() => {
  // Where the screen is narrow, the left sidebar lies over everything: it is folded until it is asked for.
  const narrow = window.matchMedia("(max-width: 768px)");
  let folds = narrow.matches;
  const fold = () => {
    const side = document.querySelector("#side.open .toggle-button");
    if (folds && side) {
      folds = false;
      side.click();
    }
  };
  const foldIfNarrow = () => {
    folds = narrow.matches;
    fold();
  };
  narrow.addEventListener("change", foldIfNarrow);
  document.addEventListener("click", (event) => {
    if (event.target.closest("#new, #history li button:first-child")) foldIfNarrow();
  });

  // What Gradio gives no name of its own, for those who hear the page.
  const name = () => {
    fold();
    const named = {
      "#side .toggle-button": "Chats and settings",
      "#seen-side .toggle-button": "What the model saw",
      "#box textarea": "Question",
    };
    for (const [which, label] of Object.entries(named))
      for (const part of document.querySelectorAll(which))
        if (part.getAttribute("aria-label") !== label) part.setAttribute("aria-label", label);
  };
  name();
  new MutationObserver(name).observe(document.body, { childList: true, subtree: true });

  // A file that is dropped beside the box belongs into it; the browser would leave the page for it.
  for (const kind of ["dragover", "drop"])
    document.addEventListener(kind, (event) => {
      if (event.defaultPrevented || !event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      if (kind === "dragover") return;
      const again = new DragEvent("drop", { dataTransfer: event.dataTransfer, bubbles: true, cancelable: true });
      document.querySelector("#box textarea")?.dispatchEvent(again);
    });

  // A server that starts anew knows nothing of this tab: the page is loaded again, and goes on from the history.
  let server = null;
  const look = async () => {
    if (document.hidden) return;
    const reply = await fetch("gradio_api/app_id").catch(() => null);
    if (!reply?.ok) return; // gone, or going: the next look tells
    const { app_id } = await reply.json();
    if (server !== null && app_id !== server) location.reload();
    server = app_id;
  };
  look();
  setInterval(look, 3000);
  document.addEventListener("visibilitychange", look);

  // Dark or light as last chosen, else as the system has it. Escape stops an answer.
  const chosen = localStorage.getItem("mmvl-theme");
  if (chosen) document.body.classList.toggle("dark", chosen === "dark");
  window.mmvlTheme = () => {
    const dark = document.body.classList.toggle("dark");
    localStorage.setItem("mmvl-theme", dark ? "dark" : "light");
  };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") document.querySelector("#box .stop-button")?.click();
  });
}
