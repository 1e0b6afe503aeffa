"use strict";
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const label = () => { button.textContent = isDark() ? "Light colours" : "Dark colours"; };
  try { // storage may be refused to a local file
    const kept = localStorage.getItem("skillgraft-theme");
    if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  } catch (error) { /* the page then follows the system */ }
  button.hidden = false;
  label();
  system.addEventListener("change", label);
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    label();
    try { localStorage.setItem("skillgraft-theme", root.dataset.theme); } catch (error) { /* not kept */ }
  });

  for (const group of document.querySelectorAll("[data-examples]")) {
    const cards = Array.from(group.querySelectorAll("article"), (card) => ({ card, text: "" }));
    const buttons = Array.from(group.querySelectorAll("[data-filter]"));
    const search = group.querySelector("input");
    const status = group.querySelector("[role=status]");
    let change = "all";
    const apply = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const item of cards) {
        if (words.length && !item.text) item.text = item.card.textContent.toLowerCase();
        const hit = (change === "all" || item.card.dataset.change === change)
          && words.every((word) => item.text.includes(word));
        item.card.hidden = !hit;
        shown += hit ? 1 : 0;
      }
      status.textContent = shown === cards.length ? "" : `${shown} of ${cards.length}`;
      group.querySelector(".nothing").hidden = shown > 0;
    };
    for (const one of buttons) {
      one.addEventListener("click", () => {
        change = one.dataset.filter;
        for (const other of buttons) other.setAttribute("aria-pressed", String(other === one));
        apply();
      });
    }
    search.addEventListener("input", apply);
    group.querySelector(".toolbar").hidden = false;
  }

  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) details.open = true;
  });
})();
