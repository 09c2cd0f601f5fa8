// Tooltips for charts: whatever carries data-tip shows it, its first line in bold, to pointer, touch and keyboard.
// The page says everything without this script too.
"use strict";

(() => {
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.setAttribute("role", "tooltip");
  tip.hidden = true;
  document.body.append(tip);

  // Where the pointer is; null while the keyboard is used.
  let pointer = null;

  const hide = () => { tip.hidden = true; };

  const show = (mark, x, y) => {
    const [title, ...lines] = mark.dataset.tip.split("\n");
    const strong = document.createElement("strong");
    strong.textContent = title;
    // Text, never markup: names in a report are chosen by others.
    tip.replaceChildren(strong, ...lines.map((line) => {
      const row = document.createElement("div");
      row.textContent = line;
      return row;
    }));
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = Math.min(Math.max(8, x + 14), document.documentElement.clientWidth - box.width - 8);
    const above = y - box.height - 14;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${above < 8 ? y + 18 : above}px`;
  };

  // The page may move under a pointer that rests, and focusing a mark may scroll to it, so this also runs on scrolling.
  const update = () => {
    const target = pointer ? document.elementFromPoint(pointer.x, pointer.y) : document.activeElement;
    const mark = target?.closest("[data-tip]");
    if (!mark) return hide();
    if (pointer) return show(mark, pointer.x, pointer.y);
    const box = (mark.querySelector(".point") ?? mark).getBoundingClientRect();
    return show(mark, box.right, box.top);
  };

  const follow = (event) => {
    pointer = { x: event.clientX, y: event.clientY };
    update();
  };

  const leave = () => {
    pointer = null;
    hide();
  };

  document.addEventListener("pointermove", follow);
  document.addEventListener("pointerdown", follow);
  document.documentElement.addEventListener("pointerleave", leave);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") leave();
    if (event.key === "Tab") pointer = null;
  });
  document.addEventListener("focusin", update);
  document.addEventListener("focusout", () => { if (!pointer) hide(); });
  document.addEventListener("scroll", () => { if (!tip.hidden) update(); }, { passive: true, capture: true });

  // On paper nothing unfolds.
  const folded = [...document.querySelectorAll("details:not([open])")];
  window.addEventListener("beforeprint", () => folded.forEach((details) => { details.open = true; }));
  window.addEventListener("afterprint", () => folded.forEach((details) => { details.open = false; }));
})();
