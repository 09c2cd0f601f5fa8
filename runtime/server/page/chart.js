// A small chart of one or two lines over the last minutes, as SVG, with the values under the pointer.

import { drawing, element } from "./dom.js";

const WIDTH = 300;
const HEIGHT = 64;
const TOP = 4;
const WINDOWS = [60, 120, 300]; // seconds: a young page has little to show

/** As much as charts show. */
export const SHOWN_SECONDS = WINDOWS.at(-1);

/**
 * A card with a chart.
 *
 * `lines`: `{name, key, kind}`: a key of the points, and `first` or `second`, which the style sheet draws.
 * `text`: a value as text with its unit; `unit`: how much of a value the text calls 1, for a round top of the axis.
 */
export class Chart {
  constructor({ title, lines, text, unit = 1 }) {
    Object.assign(this, { title, lines, text, unit, points: [], seconds: WINDOWS[0] });
    this.now = element("p", { class: "now" });
    this.svg = drawing("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    this.most = element("span", { class: "most" });
    this.under = element("p", { class: "under", "aria-hidden": "true" });
    this.said = element("p", { class: "unseen" });
    const plot = element("div", { class: "plot" }, this.svg, this.most);
    this.card = element("article", { class: "card chart" }, element("h3", {}, title), this.now, plot, this.under, this.said);
    plot.addEventListener("pointermove", (event) => this.point(event, plot));
    plot.addEventListener("pointerleave", () => this.leave());
    this.at = null;
  }

  /** Draw the points again; `now` is the right edge, in seconds. */
  draw(points, now) {
    const age = now - (points[0]?.time ?? now);
    this.seconds = WINDOWS.find((seconds) => seconds >= age) ?? SHOWN_SECONDS;
    this.points = points.filter((point) => point.time > now - this.seconds);
    this.until = now;
    const values = this.points.flatMap((point) => this.lines.map(({ key }) => point[key])).filter((value) => value !== null);
    this.top = this.unit * roundUp(Math.max(0, ...values) / this.unit);
    const last = this.points.at(-1);
    this.now.replaceChildren(...this.lines.map((line) => this.value(line, last)));
    const shapes = this.lines.toReversed().flatMap((line) => this.shapes(line));
    this.svg.replaceChildren(drawing("path", { class: "base", d: `M0 ${HEIGHT - 0.5}H${WIDTH}` }), ...shapes);
    this.most.textContent = this.top ? this.text(this.top) : "";
    this.card.classList.toggle("empty", values.length === 0);
    this.said.textContent = this.inWords(last, values);
    this.showAt();
  }

  value(line, point) {
    const text = this.text(point?.[line.key] ?? null);
    const name = line.name ? element("span", { class: `name ${line.kind}` }, line.name) : null;
    return element("span", { class: "value" }, name, element("b", {}, text));
  }

  inWords(last, values) {
    if (!values.length) return "Nothing measured yet.";
    const now = this.lines.map(({ name, key }) => `${name ? `${name} ` : ""}${this.text(last[key])}`).join(", ");
    return `Now ${now}; the highest lately ${this.text(Math.max(...values))}.`;
  }

  x(time) { return WIDTH * (1 - (this.until - time) / this.seconds); }

  y(value) { return HEIGHT - 1 - (HEIGHT - 1 - TOP) * (this.top ? value / this.top : 0); }

  /** A line and, of the first, the area below; broken where there is no value. */
  shapes({ key, kind }) {
    const runs = [[]];
    for (const point of this.points) {
      if (point[key] === null) runs.push([]);
      else runs.at(-1).push(`${this.x(point.time).toFixed(1)} ${this.y(point[key]).toFixed(1)}`);
    }
    return runs.filter((run) => run.length).flatMap((run) => {
      const line = `M${run.join("L")}${run.length === 1 ? "h0.01" : ""}`;
      const left = run[0].split(" ")[0];
      const right = run.at(-1).split(" ")[0];
      const area = kind === "first" && run.length > 1
        ? [drawing("path", { class: "area", d: `${line}L${right} ${HEIGHT}L${left} ${HEIGHT}Z` })] : [];
      return [...area, drawing("path", { class: `line ${kind}`, d: line, "vector-effect": "non-scaling-stroke" })];
    });
  }

  point(event, plot) {
    const box = plot.getBoundingClientRect();
    this.at = (event.clientX - box.left) / box.width;
    this.showAt();
  }

  leave() {
    this.at = null;
    this.showAt();
  }

  /** The values under the pointer; without one, what the axis is. */
  showAt() {
    this.svg.querySelector(".cursor")?.remove();
    const time = this.at === null ? null : this.until - (1 - this.at) * this.seconds;
    const near = time === null || !this.points.length ? null
      : this.points.reduce((a, b) => (Math.abs(b.time - time) < Math.abs(a.time - time) ? b : a));
    this.under.classList.toggle("pointed", near !== null);
    if (near === null) {
      this.under.replaceChildren(element("span", {}, `${this.seconds / 60} min ago`), element("span", {}, "now"));
      return;
    }
    const x = this.x(near.time).toFixed(1);
    this.svg.append(drawing("path", { class: "cursor", d: `M${x} 0V${HEIGHT}`, "vector-effect": "non-scaling-stroke" }));
    const ago = Math.round(this.until - near.time);
    const values = this.lines.map(({ name, key }) => `${name ? `${name} ` : ""}${this.text(near[key])}`);
    this.under.replaceChildren(
      element("span", {}, values.join(" · ")),
      element("span", {}, ago < 1 ? "now" : ago < 60 ? `${ago} s ago` : `${Math.floor(ago / 60)} min ${ago % 60} s ago`),
    );
  }
}

/** The next of 1, 2, 5, 10, 20, … */
function roundUp(value) {
  if (value <= 0) return 0;
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 5, 10].find((step) => step * power >= value * 0.999999);
}
