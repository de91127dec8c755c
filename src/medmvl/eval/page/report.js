// The gallery: filters that combine, counts beside every choice, pictures that can be made larger.
const form = document.getElementById("filter");
const cards = [...document.querySelectorAll(".card")];
const keys = ["task", "modality", "type", "outcome"];

// A card fits when it has every value that is chosen; `but` leaves one key out, to count what it could be changed to.
const fits = (card, chosen, but) => keys.every((key) => key === but || !chosen[key] || card.dataset[key] === chosen[key]);

const apply = () => {
  const data = new FormData(form);
  const chosen = Object.fromEntries(keys.map((key) => [key, data.get(key)]));
  let shown = 0;
  for (const card of cards) {
    card.hidden = !fits(card, chosen);
    shown += !card.hidden;
  }
  for (const key of keys) {
    const others = cards.filter((card) => fits(card, chosen, key));
    const count = (value) => others.filter((card) => !value || card.dataset[key] === value).length;
    for (const option of form.querySelectorAll(`select[name=${key}] option`)) {
      option.dataset.text ??= option.textContent;
      option.textContent = `${option.dataset.text} (${count(option.value)})`;
    }
    for (const radio of form.querySelectorAll(`input[name=${key}]`)) {
      const label = radio.nextElementSibling;
      label.dataset.text ??= label.textContent;
      label.textContent = `${label.dataset.text} ${count(radio.value)}`;
    }
  }
  const task = form.elements.task.selectedOptions[0];
  const note = task.value ? ` Of this task: ${task.dataset.note}.` : "";
  const told = shown ? `${shown} of ${cards.length} answers shown.` : "No answer on this page fits.";
  document.getElementById("status").textContent = told + note;
};

if (form) {
  form.hidden = false;
  form.addEventListener("change", apply);
  form.addEventListener("reset", () => setTimeout(apply));
  form.addEventListener("submit", (event) => event.preventDefault());
  apply();
}

for (const button of document.querySelectorAll(".zoom")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const large = button.closest(".card").classList.toggle("large");
    button.setAttribute("aria-pressed", String(large));
    button.textContent = large ? "smaller" : "larger";
  });
}
