// A conversation, streamed, that can be stopped and begun anew.

import { curl } from "../api.js";
import { element } from "../dom.js";
import { alert, folded, textArea } from "./form.js";
import { options, streaming, write } from "./writing.js";

const PATH = "v1/chat/completions";

class Chat {
  constructor(model) {
    this.model = model;
    this.turns = [];
    this.stop = null;
    this.log = element("div", { class: "log", role: "log", "aria-label": "Conversation", tabindex: "0" });
    this.system = textArea("System message", "", { rows: 2, hint: "What the model is told before the conversation." });
    this.options = options();
    this.message = textArea("Message", "", { rows: 2, hint: "Enter sends, Shift and Enter begin a line." });
    this.send = element("button", { type: "submit" }, "Send");
    this.anew = element("button", { type: "button", class: "plain", on: { click: () => this.begin() } }, "New chat");
    this.status = element("span", { class: "status", role: "status" });
    this.asCurl = folded("The next request as curl");
    this.form = element(
      "form", { class: "ask", novalidate: true },
      this.message.node,
      element("div", { class: "actions" }, this.send, this.anew, this.status),
      element("details", { class: "folded" }, element("summary", {}, "Options"), this.system.node, this.options.node),
    );
    this.listen();
    this.begin();
  }

  listen() {
    this.form.addEventListener("input", () => this.showCurl());
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.stop) this.stop.abort();
      else this.ask();
    });
    this.message.control.addEventListener("keydown", (event) => {
      // While an input method is composing, Enter takes its proposal.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      if (!this.stop) this.form.requestSubmit();
    });
  }

  get node() {
    const about = element("p", { class: "about" }, "Talk with the model. What it writes appears as it comes.");
    return element("div", {}, about, this.log, this.form, this.asCurl.node);
  }

  begin() {
    this.stop?.abort();
    this.turns = [];
    this.log.replaceChildren();
    this.log.hidden = true;
    this.status.textContent = "";
    this.showCurl();
  }

  body(message) {
    const system = this.system.value().trim();
    const before = system ? [{ role: "system", content: system }] : [];
    const messages = [...before, ...this.turns, { role: "user", content: message }];
    return { model: this.model.id, messages, ...this.options.read(), ...streaming };
  }

  showCurl() { this.asCurl.set(curl(PATH, this.body(this.message.value() || "Hello!"))); }

  /** A turn in the log, and the text node that may grow. */
  add(role, name, text) {
    const grows = document.createTextNode(text);
    const turn = element("div", { class: `turn ${role}` }, element("h4", {}, name), element("p", { class: "said" }, grows));
    this.log.hidden = false;
    this.log.append(turn);
    return { turn, grows };
  }

  async ask() {
    const message = this.message.value().trim();
    if (!message) {
      this.message.control.focus();
      return;
    }
    const turns = this.turns;
    const body = this.body(message);
    const asked = this.add("user", "You", message);
    const { turn, grows } = this.add("assistant", this.model.id, "");
    const pace = element("p", { class: "pace" });
    turn.append(pace);
    this.log.scrollTop = this.log.scrollHeight;
    turn.setAttribute("aria-busy", "true"); // read aloud once it is complete, not by the word
    this.message.control.value = "";
    this.stop = new AbortController();
    this.send.textContent = "Stop";
    this.send.classList.add("stop");
    this.status.textContent = "Writing …";
    const follow = setInterval(() => this.follow(), 100);
    try {
      const piece = ({ delta }) => delta?.content;
      const text = await write({ path: PATH, body, piece, into: grows, status: pace, signal: this.stop.signal });
      turns.push({ role: "user", content: message }, { role: "assistant", content: text });
    } catch (error) {
      // It did not become part of the conversation: shown as failed, and the message is there to be sent again.
      asked.turn.classList.add("lost");
      turn.append(alert(error));
      if (!this.message.value()) this.message.control.value = message;
    } finally {
      clearInterval(follow);
      turn.removeAttribute("aria-busy");
      this.stop = null;
      this.send.textContent = "Send";
      this.send.classList.remove("stop");
      this.status.textContent = "";
      this.follow();
      this.showCurl();
    }
  }

  /** Keep the end in sight, unless somebody scrolled up to read. */
  follow() {
    const { scrollHeight, scrollTop, clientHeight } = this.log;
    if (scrollHeight - scrollTop - clientHeight < 120) this.log.scrollTop = scrollHeight;
  }
}

export const chat = (model) => new Chat(model).node;
