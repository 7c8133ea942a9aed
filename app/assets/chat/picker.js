// The page picker: tells the server which PDFs lie in the box, and which of their pages are wanted.

let known = "[]";
let order = 0; // the server may hear of a later choice first
window.mmvlFiles = (box) => {
  const paths = (box?.files ?? []).map((file) => file.path).filter((path) => path?.toLowerCase().endsWith(".pdf"));
  if (JSON.stringify(paths) === known) return;
  known = JSON.stringify(paths);
  trigger("select", { files: paths, order: ++order });
};

element.addEventListener("change", (event) => {
  const set = event.target.closest("fieldset");
  if (!set) return;
  const path = set.dataset.path;
  if (event.target.type === "text") return trigger("input", { path, pages: event.target.value, order: ++order });
  const on = [...set.querySelectorAll("input[type=checkbox]:checked")].map((box) => Number(box.value));
  const shown = Number(set.dataset.shown);
  const beyond = set.dataset.chosen.split(" ").map(Number).filter((number) => number > shown);
  trigger("input", { path, pages: [...on, ...beyond].join(","), order: ++order });
});

watch("value", () => {
  // A box that was clicked no longer follows its attribute.
  for (const box of element.querySelectorAll("input[type=checkbox]")) box.checked = box.hasAttribute("checked");
  for (const box of element.querySelectorAll("input[type=text]")) box.value = box.getAttribute("value");
});
