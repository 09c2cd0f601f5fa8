// Answers as shapes: bars, a matrix, marks in a text.

import { element } from "../dom.js";

/** A share as per cent of three digits. */
export const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 2 : 1)} %`;

/**
 * Rows with a bar each.
 * @param {string} caption of the list, for who does not see it.
 * @param rows `{name, share, value, best}`: an element or a text, the length of the bar from 0 to 1, a text.
 */
export function bars(caption, rows) {
  return element("ol", { class: "bars", "aria-label": caption }, rows.map(({ name, share, value, best }) => {
    const bar = element("span", { class: "bar", "aria-hidden": "true" });
    bar.style.setProperty("--share", String(Math.min(1, Math.max(0, share))));
    const said = [element("span", { class: "bar-name" }, name), " ", element("span", { class: "bar-value" }, value)];
    return element("li", { class: best ? "best" : null }, ...said, bar);
  }));
}

/** Cosine similarities as a table whose cells are the darker the more similar the texts are. */
export function matrix(texts, similarities) {
  const heading = texts.map((_, place) => element("th", { scope: "col" }, String(place + 1)));
  const rows = texts.map((text, row) => element(
    "tr", {},
    element("th", { scope: "row" }, element("span", { class: "place" }, `${row + 1} `), element("span", { class: "text" }, text)),
    similarities[row].map((similarity, column) => {
      const cell = element("td", { class: row === column ? "self" : null }, similarity.toFixed(2));
      cell.style.setProperty("--share", String(Math.max(0, similarity)));
      return cell;
    }),
  ));
  const table = element(
    "table", { class: "matrix" },
    element("caption", { class: "unseen" }, "Cosine similarity of each pair of texts"),
    element("thead", {}, element("tr", {}, element("td", {}), heading)),
    element("tbody", {}, rows),
  );
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Similarities" }, table);
}

/**
 * A text with marks.
 * @param spans `{start, end, note}` that do not overlap. Places count characters as Python does, by code points; a
 *   JavaScript string counts an emoji as two.
 */
export function marked(text, spans) {
  const characters = Array.from(text);
  const piece = (start, end) => characters.slice(start, end).join("");
  const parts = [];
  let done = 0;
  for (const { start, end, note, kind } of spans.toSorted((a, b) => a.start - b.start)) {
    if (start < done) continue;
    const label = note ? element("span", { class: "note" }, note) : null;
    parts.push(piece(done, start), element("mark", { "data-kind": kind }, piece(start, end), label));
    done = end;
  }
  return element("p", { class: "marked" }, ...parts, piece(done));
}
