// Health and figures, read again and again while somebody looks.

import { request } from "./api.js";
import { Chart, SHOWN_SECONDS } from "./chart.js";
import { byId, duration, figure } from "./dom.js";
import { point, reading } from "./metrics.js";

const EVERY_SECONDS = 2;
const OVER_SECONDS = 10; // rates and quantiles are of what happened in so long
const PATIENCE_MS = 5000;
const MEBIBYTE = 2 ** 20;

const asDuration = (value) => (value === null ? "–" : duration(value));
const perSecond = (value) => (value === null ? "–" : `${figure(value)}/s`);
const bytes = (value) => {
  if (value === null) return "–";
  return value < 1024 * MEBIBYTE ? `${figure(value / MEBIBYTE)} MiB` : `${(value / 1024 / MEBIBYTE).toFixed(2)} GiB`;
};

const CHARTS = {
  requests: { title: "Requests", text: perSecond, lines: [["", "requests", "first"], ["refused", "refusals", "second"]] },
  latency: { title: "Latency", text: asDuration, lines: [["p50", "p50", "first"], ["p99", "p99", "second"]] },
  first: { title: "First token", text: asDuration, lines: [["p50", "first50", "first"], ["p99", "first99", "second"]] },
  batch: { title: "Texts per batch", text: figure, lines: [["", "batch", "first"]] },
  tokens: { title: "Tokens", text: perSecond, lines: [["in", "tokensIn", "first"], ["out", "tokensOut", "second"]] },
  waiting: { title: "Waiting", text: figure, lines: [["", "waiting", "first"]] },
  memory: { title: "Memory", text: bytes, unit: MEBIBYTE, lines: [["", "memory", "first"]] },
};

const HEALTH = {
  ready: "Ready",
  draining: "Draining: it finishes what it has, and takes no more",
  live: "Live, and not ready yet",
  away: "Not reachable",
};

const seconds = () => performance.now() / 1000;
const later = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Show charts for these models, from now on. */
export async function watch(models) {
  const writes = models.some(({ task }) => task === "text-generation");
  const shown = ["requests", "latency", writes ? "first" : "batch", "tokens", "waiting", "memory"];
  const charts = shown.map((name) => {
    const lines = CHARTS[name].lines.map(([label, key, kind]) => ({ name: label, key, kind }));
    return new Chart({ ...CHARTS[name], lines });
  });
  byId("charts").replaceChildren(...charts.map(({ card }) => card));
  const readings = [];
  const points = [];
  for (;;) {
    const read = await readMetrics();
    if (read) {
      const before = readings.findLast(({ time }) => time <= read.time - OVER_SECONDS + 0.5) ?? readings[0];
      if (before) points.push(point(before, read));
      readings.push(read);
    }
    const now = seconds();
    while (readings[0]?.time < now - 2 * OVER_SECONDS) readings.shift();
    while (points[0]?.time < now - SHOWN_SECONDS) points.shift();
    for (const chart of charts) chart.draw(points, now);
    await later(EVERY_SECONDS * 1000);
    await untilSeen();
  }
}

async function readMetrics() {
  const note = byId("live-note");
  try {
    const asked = seconds();
    const response = await request("metrics", { signal: AbortSignal.timeout(PATIENCE_MS), quiet: true });
    const read = reading(await response.text(), (asked + seconds()) / 2);
    note.textContent = "The last minutes";
    return read;
  } catch (error) {
    if (error.status === 401) note.textContent = "Figures need an API key.";
    else if (error.status) note.textContent = `No figures: ${error.message}`;
    else note.textContent = "No figures: the server does not answer.";
    return null;
  }
}

/** Show the server's health, from now on; `back` is called when it answers again. */
export async function watchHealth(back) {
  const place = byId("health");
  for (;;) {
    const status = await health();
    if (place.dataset.status === "away" && status !== "away") back();
    const word = HEALTH[status] ?? status;
    place.dataset.status = status;
    // Said aloud only where it changed.
    if (place.querySelector(".word").textContent !== word) place.querySelector(".word").textContent = word;
    await later(EVERY_SECONDS * 1000);
    await untilSeen();
  }
}

async function health() {
  const options = { signal: AbortSignal.timeout(PATIENCE_MS), quiet: true, accept: [503] };
  try {
    const { status } = await (await request("health/ready", options)).json();
    return typeof status === "string" ? status : "live";
  } catch (error) {
    return error.status ? "live" : "away"; // an answer, whatever it says, comes from something that lives
  }
}

/** Nobody looks at a hidden page: it asks for nothing. */
async function untilSeen() {
  while (document.hidden) {
    await new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
  }
}
