"use strict";
/* Filters of the gallery. Without scripts every card is simply shown. */
(() => {
  const form = document.getElementById("filters");
  if (!form) return;
  const cards = Array.from(document.querySelectorAll(".flip"), (card) => ({
    card,
    text: card.textContent.toLowerCase(),
  }));
  const shown = document.getElementById("shown");
  const empty = document.getElementById("nothing-left");

  const conditionFits = (data, wanted) => !wanted || data.kind === wanted || data.change === wanted;

  const apply = () => {
    const wanted = new FormData(form);
    const words = wanted.get("text").toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const { card, text } of cards) {
      const visible =
        (!wanted.get("direction") || card.dataset.direction === wanted.get("direction")) &&
        conditionFits(card.dataset, wanted.get("condition")) &&
        (!wanted.get("group") || card.dataset.group === wanted.get("group")) &&
        (!wanted.get("category") || card.dataset.category === wanted.get("category")) &&
        words.every((word) => text.includes(word));
      card.hidden = !visible;
      count += visible ? 1 : 0;
    }
    shown.textContent = String(count);
    empty.hidden = count > 0;
  };

  form.hidden = false;
  form.addEventListener("input", apply);
  form.addEventListener("change", apply);
  form.addEventListener("reset", () => setTimeout(apply));
  form.addEventListener("submit", (event) => event.preventDefault());
  apply();
})();
