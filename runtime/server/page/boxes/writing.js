// What chat and completion share: the options of a request, and an answer that is shown as it comes, with its pace.

import { stream } from "../api.js";
import { counted, duration, element, figure } from "../dom.js";
import { numberField } from "./form.js";

/** Fields for options; `read()` has those that are given, by the API's names. */
export function options() {
  const fields = {
    temperature: numberField("Temperature", { min: 0, max: 2, step: 0.1, hint: "0 always takes the likeliest token." }),
    max_tokens: numberField("Most tokens", { min: 1, step: 1 }),
    seed: numberField("Seed", { min: 0, step: 1, hint: "The same seed gives the same answer." }),
  };
  const node = element("div", { class: "row" }, Object.values(fields).map((field) => field.node));
  const read = () => Object.fromEntries(
    Object.entries(fields).map(([name, field]) => [name, field.value()]).filter(([, value]) => value !== undefined),
  );
  return { node, read };
}

const ENDS = { stop: "finished", length: "cut at the most tokens", content_filter: "stopped by a guard" };

/** Counts an answer's tokens and times while it comes. */
class Pace {
  constructor() {
    this.began = performance.now();
    this.first = null;
    this.chunks = 0;
    this.tokens = null;
    this.end = null;
  }

  arrived() {
    this.last = performance.now();
    this.first ??= this.last;
    this.chunks += 1;
  }

  /** In words. A stopped answer has no count by the server; then its pieces are counted, mostly one for each token. */
  text() {
    const tokens = this.tokens ?? this.chunks;
    if (this.end === "failed" && this.first === null) return "";
    if (this.first === null) return [tokens ? counted(tokens, "token") : null, "no text", this.end].filter(Boolean).join(" · ");
    const seconds = (this.last - this.first) / 1000;
    const pace = seconds > 0 && tokens > 1 ? `${figure((tokens - 1) / seconds)} tokens/s` : null;
    const count = `${this.tokens === null ? "about " : ""}${counted(tokens, "token")}`;
    const first = `first after ${duration((this.first - this.began) / 1000)}`;
    return [count, pace, first, this.end].filter(Boolean).join(" · ");
  }
}

/**
 * Send a request for a stream, and show what comes.
 * @param {object} settings
 *   `path`, `body`: of the request; `piece`: makes a text of an event's choice; `into`: the text node that grows;
 *   `status`: the element that gets pace and end; `signal`: stops it.
 * @returns {Promise<string>} the text, as far as it came.
 * @throws {ApiError}
 */
export async function write({ path, body, piece, into, status, signal }) {
  const pace = new Pace();
  const finish = (end) => {
    pace.end = end;
    status.textContent = pace.text();
  };
  try {
    for await (const event of stream(path, body, signal)) {
      const choice = event.choices?.[0];
      const text = choice ? piece(choice) : null;
      if (text) {
        pace.arrived();
        into.appendData(text);
      }
      if (choice?.finish_reason) pace.end = ENDS[choice.finish_reason] ?? choice.finish_reason;
      if (event.usage) pace.tokens = event.usage.completion_tokens;
      if (pace.first !== null) status.textContent = pace.text();
    }
    finish(pace.end);
  } catch (error) {
    finish(signal.aborted ? "stopped" : "failed");
    if (!signal.aborted) throw error;
  }
  return into.data;
}

/** Ask for a stream that ends with the count of its tokens. */
export const streaming = { stream: true, stream_options: { include_usage: true } };
