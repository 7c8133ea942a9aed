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

// What is drawn later (pictures are decoded after they were put in) makes the frame longer without any change to watch.
const frame = element.closest("#window");
let atEnd = true;
let before = 0;
let turns = 0;
frame.addEventListener("scroll", () => {
  if (frame.scrollHeight - frame.scrollTop - frame.clientHeight < 60) atEnd = true;
  else if (frame.scrollTop < before) atEnd = false; // only its reader goes up
  before = frame.scrollTop;
});
new ResizeObserver(() => {
  const now = frame.querySelectorAll(".turn").length;
  if (now > turns) atEnd = true; // who asks wants to see the answer
  turns = now;
  if (atEnd) frame.scrollTop = frame.scrollHeight;
}).observe(element);
