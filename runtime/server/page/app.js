// The page: which models there are, the box of the chosen one, the key, and the live figures.

import { json } from "./api.js";
import { boxFor } from "./boxes/boxes.js";
import { byId, counted, element } from "./dom.js";
import { prepareKeys } from "./keys.js";
import { watch, watchHealth } from "./live.js";

const boxes = new Map(); // by model: what was typed stays when another model is looked at

const PLACE = "#model=";
let models = [];
let chosen = null; // the model whose box is shown

/** The model that the address names; without one, the one that is shown, or the first. */
function named() {
  const name = location.hash.startsWith(PLACE) ? location.hash.slice(PLACE.length) : null;
  const find = (fits) => models.find(({ id }) => fits(id));
  return find((id) => encodeURIComponent(id) === name) ?? find((id) => id === chosen?.id) ?? models[0];
}

function card(model) {
  const facts = [model.variant, model.provider?.replace("ExecutionProvider", "")].filter(Boolean).join(" · ");
  return element(
    "a",
    { href: PLACE + encodeURIComponent(model.id), class: "model" },
    element("strong", {}, model.id),
    element("span", { class: "task" }, model.task),
    element("span", { class: "facts" }, facts),
  );
}

function choose() {
  if (!models.length) return;
  chosen = named();
  for (const [place, link] of [...byId("models").children].entries()) {
    if (models[place] === chosen) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
  const kind = JSON.stringify([chosen.id, chosen.task]);
  if (!boxes.has(kind)) boxes.set(kind, boxFor(chosen));
  byId("box").replaceChildren(boxes.get(kind));
}

let watched = false;

async function showModels() {
  try {
    models = (await json("v1/models")).data;
  } catch (error) {
    if (!chosen) byId("box").replaceChildren(element("p", { class: "alert", role: "alert" }, error.message));
    return;
  }
  byId("models-note").textContent = `${counted(models.length, "model")} loaded`;
  byId("models").replaceChildren(...models.map(card));
  choose();
  if (!watched) watch(models);
  watched = true;
}

window.addEventListener("hashchange", () => {
  choose();
  // Where the box lies below the list, it is out of sight.
  if (location.hash.startsWith(PLACE) && matchMedia("(max-width: 900px)").matches) byId("box").scrollIntoView();
});
prepareKeys(byId("key"), showModels);
watchHealth(showModels); // a server that is back may have other models
showModels();
