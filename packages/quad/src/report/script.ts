/** The page's own script: light and dark, and the sliders. Plain JavaScript, because it goes into the file as it is. */
export const script = `
"use strict";
(() => {
  const root = document.documentElement;
  const theme = document.getElementById("theme");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
  const label = () => { theme.textContent = dark() ? "Light" : "Dark"; theme.setAttribute("aria-label", "switch to " + theme.textContent.toLowerCase()); };
  theme.hidden = false;
  theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; label(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
  label();

  for (const task of document.querySelectorAll(".task")) {
    const box = task.querySelector(".compare");
    const stage = box.querySelector(".stage");
    const at = box.querySelector(".at");
    const row = box.querySelector(".row");
    const variant = box.querySelector(".variant");
    const what = box.querySelector(".what");
    if (!variant.options.length) continue;
    const find = (name) => task.querySelector('.pick[data-row="' + row.value + '"][data-variant="' + CSS.escape(name) + '"]');
    const move = () => stage.style.setProperty("--at", at.value + "%");
    const show = () => {
      const shown = find(variant.value);
      const exact = find("reference");
      if (!shown || !exact) return;
      const [over, under] = [shown.firstElementChild, exact.firstElementChild];
      box.querySelector(".over").src = over.src;
      box.querySelector(".over").alt = over.alt;
      box.querySelector(".under").src = under.src;
      box.querySelector(".under").alt = under.alt;
      box.querySelector(".left").textContent = variant.selectedOptions[0].textContent;
      const figure = shown.parentElement.querySelector("span");
      what.textContent = over.alt + (figure ? ": " + figure.textContent : "");
      for (const pick of task.querySelectorAll(".pick")) pick.classList.toggle("chosen", pick === shown);
    };
    task.addEventListener("click", (event) => {
      const pick = event.target.closest(".pick");
      if (!pick) return;
      row.value = pick.dataset.row;
      if (pick.dataset.variant !== "reference") variant.value = pick.dataset.variant;
      show();
      stage.scrollIntoView({ block: "nearest" });
    });
    const drag = (event) => {
      const { left, width } = stage.getBoundingClientRect();
      at.value = String(Math.min(100, Math.max(0, (100 * (event.clientX - left)) / width)));
      move();
    };
    stage.addEventListener("pointerdown", (event) => { stage.setPointerCapture(event.pointerId); drag(event); });
    stage.addEventListener("pointermove", (event) => { if (event.buttons) drag(event); });
    at.addEventListener("input", move);
    row.addEventListener("change", show);
    variant.addEventListener("change", show);
    box.hidden = false;
    move();
    show();
  }
})();
`;
