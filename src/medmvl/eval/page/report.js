// The gallery's filter: a card is shown when it fits the chosen task and the chosen outcome.
const chosen = { task: "", outcome: "" };
const apply = () => {
  for (const card of document.querySelectorAll(".card")) {
    card.hidden = Object.entries(chosen).some(([key, value]) => value && card.dataset[key] !== value);
  }
};
for (const button of document.querySelectorAll("button[data-key]")) {
  button.addEventListener("click", () => {
    chosen[button.dataset.key] = button.dataset.value;
    for (const other of document.querySelectorAll(`button[data-key=${button.dataset.key}]`)) {
      other.setAttribute("aria-pressed", String(other === button));
    }
    apply();
  });
}
