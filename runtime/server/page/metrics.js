// Reads Prometheus' text format, and makes figures for people of two readings. Whatever is missing is null, not an error:
// the page also serves servers that count less.

const LINE = /^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?\s+(\S+)/;
const LABEL = /([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"/g;
const ESCAPES = { n: "\n", '"': '"', "\\": "\\" };
// Who looks at the page should not see that in the figures.
const WATCHING = /^\/($|health|metrics|docs|openapi\.json|page|v1\/models|favicon)/;

/** Samples by name: `{labels, value}` each. */
export function parse(text) {
  const samples = new Map();
  for (const line of text.split("\n")) {
    const found = line.startsWith("#") ? null : LINE.exec(line);
    const value = found ? number(found[3]) : NaN;
    if (Number.isNaN(value)) continue;
    const labels = {};
    for (const [, name, value] of (found[2] ?? "").matchAll(LABEL)) {
      labels[name] = value.replace(/\\(.)/g, (_, mark) => ESCAPES[mark] ?? mark);
    }
    if (!samples.has(found[1])) samples.set(found[1], []);
    samples.get(found[1]).push({ labels, value });
  }
  return samples;
}

const number = (text) => (text === "+Inf" ? Infinity : text === "-Inf" ? -Infinity : Number(text));
const always = () => true;
const work = ({ route }) => route === undefined || !WATCHING.test(route);

function sum(samples, name, fits = always) {
  const found = samples.get(name);
  return found ? found.filter(({ labels }) => fits(labels)).reduce((total, { value }) => total + value, 0) : null;
}

/** Counts up to each bound, over all other labels. */
function buckets(samples, name, fits = always) {
  const found = samples.get(`${name}_bucket`);
  if (!found) return null;
  const counts = new Map();
  for (const { labels, value } of found) {
    if (!fits(labels)) continue;
    const bound = number(labels.le);
    counts.set(bound, (counts.get(bound) ?? 0) + value);
  }
  return counts;
}

/** What the page shows of one reading, at a time in seconds. */
export function reading(text, time) {
  const samples = parse(text);
  const requests = sum(samples, "onnxpress_requests_total", work);
  return {
    time,
    requests,
    refusals: sum(samples, "onnxpress_refusals_total") ?? (requests === null ? null : 0), // there from the first one on
    seconds: buckets(samples, "onnxpress_request_seconds", work),
    firstToken: buckets(samples, "onnxpress_first_token_seconds"),
    batchSum: sum(samples, "onnxpress_batch_sequences_sum"),
    batchCount: sum(samples, "onnxpress_batch_sequences_count"),
    tokensIn: sum(samples, "onnxpress_tokens_in_total"),
    // Chosen tokens are counted as they come, those of answers when these are complete.
    tokensOut: sum(samples, "onnxpress_chosen_tokens_total") ?? sum(samples, "onnxpress_tokens_out_total"),
    waiting: sum(samples, "onnxpress_queue_waiting"),
    memory: sum(samples, "onnxpress_memory_bytes", ({ kind }) => kind === undefined || kind === "resident"),
  };
}

/** How much a counter grew, from nothing where it was not there yet; null where it began anew because a process did. */
function growth(before, after) {
  if (after === null || after < before) return null;
  return after - before;
}

function perSecond(before, after, name) {
  const grown = growth(before[name], after[name]);
  return grown === null ? null : grown / (after.time - before.time);
}

/**
 * A quantile of what a histogram counted between two readings, as Prometheus' histogram_quantile has it: linear within a
 * bucket. Null where nothing was counted. Without a reading before, it had counted nothing.
 */
export function quantile(share, before, after) {
  if (!after) return null;
  const bounds = [...after.keys()].sort((a, b) => a - b);
  const counts = bounds.map((bound) => after.get(bound) - (before?.get(bound) ?? 0));
  const total = counts.at(-1);
  if (!(total > 0) || counts.some((count) => count < 0)) return null;
  const rank = share * total;
  const place = counts.findIndex((count) => count >= rank);
  const low = place === 0 ? 0 : bounds[place - 1];
  if (bounds[place] === Infinity) return low;
  const below = place === 0 ? 0 : counts[place - 1];
  const within = counts[place] - below;
  return within > 0 ? low + ((bounds[place] - low) * (rank - below)) / within : low;
}

/** What happened between two readings: per second, in seconds, in bytes. */
export function point(before, after) {
  const batches = growth(before.batchCount, after.batchCount);
  const sequences = growth(before.batchSum, after.batchSum);
  return {
    time: after.time,
    requests: perSecond(before, after, "requests"),
    refusals: perSecond(before, after, "refusals"),
    p50: quantile(0.5, before.seconds, after.seconds),
    p99: quantile(0.99, before.seconds, after.seconds),
    first50: quantile(0.5, before.firstToken, after.firstToken),
    first99: quantile(0.99, before.firstToken, after.firstToken),
    batch: batches > 0 && sequences !== null ? sequences / batches : null,
    tokensIn: perSecond(before, after, "tokensIn"),
    tokensOut: perSecond(before, after, "tokensOut"),
    waiting: after.waiting,
    memory: after.memory,
  };
}
