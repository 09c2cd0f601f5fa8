// Requests to the server that gave this page: its key, its errors as sentences, its streams, and requests as curl.

const STORED = "onnxpress-api-key"; // of sessionStorage: this tab only
const KEY_IN_SHELL = "$ONNXPRESS_API_KEY";

/** The server's answer was an error, or there was none. The message is for people. */
export class ApiError extends Error {
  constructor(message, status = 0, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

let askForKey = async () => false;

/** Set what happens at 401: it hears whether a key was sent, and says whether there is a new one. */
export const onUnauthorized = (ask) => { askForKey = ask; };

export const storedKey = () => sessionStorage.getItem(STORED);

export function storeKey(key) {
  if (key) sessionStorage.setItem(STORED, key);
  else sessionStorage.removeItem(STORED);
}

/**
 * Send a request.
 * @param {string} path such as `v1/models`; relative, so that the server may lie under a prefix.
 * @param {object} options `body` to POST as JSON, `signal` to abort, `quiet` to not ask for a key, `accept` statuses
 *   beside 2xx that are no errors.
 * @returns {Promise<Response>}
 * @throws {ApiError}
 */
export async function request(path, { body, signal, quiet = false, accept = [] } = {}) {
  for (;;) {
    const key = storedKey();
    const response = await send(path, body, signal, key);
    if (response.ok || accept.includes(response.status)) return response;
    const error = await errorOf(response);
    if (response.status !== 401 || quiet) throw error;
    // Another request may have been given a key meanwhile.
    if (storedKey() === key && !(await askForKey(key !== null))) throw error;
  }
}

/** The JSON of an answer. */
export const json = async (path, options) => (await request(path, options)).json();

async function send(path, body, signal, key) {
  const headers = {};
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  try {
    return await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
      credentials: "omit",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached. Is it still running?");
  }
}

async function errorOf(response) {
  let detail = null;
  try {
    detail = (await response.json()).error;
  } catch {
    // Not from our routes: a proxy, perhaps.
  }
  return refusal(detail, response.status, response.headers.get("Retry-After"));
}

function refusal(detail, status, retryAfter = null) {
  let message = detail?.message ? sentence(detail.message) : `The server answered with status ${status}.`;
  if (retryAfter) message += ` Try again in ${retryAfter} s.`;
  return new ApiError(message, status, detail?.code ?? null);
}

function sentence(text) {
  const begun = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?。！？]$/.test(begun) ? begun : `${begun}.`;
}

/**
 * Send a request for a stream of server-sent events, and give the JSON of each until `[DONE]`.
 * @throws {ApiError} also where an event says that the answer failed.
 */
export async function* stream(path, body, signal) {
  const response = await request(path, { body, signal });
  for await (const data of eventData(response.body)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw refusal(event.error, response.status);
    yield event;
  }
  throw new ApiError("The connection ended before the answer did.");
}

async function* eventData(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split(/\r?\n/);
      rest = parts.pop();
      for (const line of parts) {
        if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
        if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** The same request for a shell. The key is named, not shown. */
export function curl(path, body) {
  const url = new URL(path, document.baseURI).href;
  const parts = [`curl ${body.stream ? "-N " : ""}${url}`, "-H 'Content-Type: application/json'"];
  if (storedKey()) parts.push(`-H "Authorization: Bearer ${KEY_IN_SHELL}"`);
  parts.push(`-d ${quoted(JSON.stringify(body, null, 2))}`);
  return parts.join(" \\\n  ");
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
