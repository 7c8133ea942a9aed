// Buttons inside the conversation, and scrolling along with an answer for as long as its reader is at the end.

element.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-do]");
  if (!button || button.disabled) return;
  if (button.dataset.do === "copy") {
    const answer = button.closest("section").querySelector(".answer").innerText.trim();
    try {
      await navigator.clipboard.writeText(answer);
      button.textContent = "Copied";
    } catch {
      button.textContent = "The browser does not allow it";
    }
    setTimeout(() => (button.textContent = "Copy"), 1500);
    return;
  }
  trigger("select", { do: button.dataset.do, turn: button.dataset.turn });
});

const frame = element.closest("#window");
let atEnd = true;
frame.addEventListener("scroll", () => {
  atEnd = frame.scrollHeight - frame.scrollTop - frame.clientHeight < 60;
});
new MutationObserver(() => {
  if (atEnd) frame.scrollTop = frame.scrollHeight;
}).observe(element, { childList: true, subtree: true, characterData: true });
