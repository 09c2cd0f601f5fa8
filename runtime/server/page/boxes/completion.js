// Text that goes on where the prompt ends, streamed.

import { curl } from "../api.js";
import { element } from "../dom.js";
import { alert, folded, textArea } from "./form.js";
import { options, streaming, write } from "./writing.js";

const PATH = "v1/completions";

export function completion(model) {
  const prompt = textArea("Prompt", "Once upon a time", { rows: 3 });
  const chosen = options();
  const send = element("button", { type: "submit" }, "Go on");
  const status = element("span", { class: "status", role: "status" });
  const result = element("div", { class: "result" });
  const asCurl = folded("This request as curl");
  const form = element(
    "form", { class: "ask", novalidate: true },
    prompt.node,
    element("div", { class: "actions" }, send, status),
    element("details", { class: "folded" }, element("summary", {}, "Options"), chosen.node),
  );
  const body = () => ({ model: model.id, prompt: prompt.value(), ...chosen.read(), ...streaming });
  let stop = null;

  const run = async () => {
    const asked = body();
    const grows = document.createTextNode("");
    const pace = element("p", { class: "pace" });
    const given = element("span", { class: "given" }, asked.prompt);
    result.replaceChildren(element("p", { class: "said continued" }, given, grows), pace);
    stop = new AbortController();
    send.textContent = "Stop";
    send.classList.add("stop");
    status.textContent = "Writing …";
    try {
      await write({ path: PATH, body: asked, piece: ({ text }) => text, into: grows, status: pace, signal: stop.signal });
    } catch (error) {
      result.append(alert(error));
    } finally {
      stop = null;
      send.textContent = "Go on";
      send.classList.remove("stop");
      status.textContent = "";
    }
  };

  form.addEventListener("input", () => asCurl.set(curl(PATH, body())));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (stop) stop.abort();
    else run();
  });
  asCurl.set(curl(PATH, body()));
  const about = element("p", { class: "about" }, "Goes on with a text, without a conversation around it.");
  return element("div", {}, about, form, result, asCurl.node);
}
