// Requests to this server. The key stays in this page's memory alone.
let key = null;

export class Failure extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export async function fetched(path, body, signal) {
  const headers = {};
  if (key !== null) headers.Authorization = `Bearer ${key}`;
  const options = { headers, signal };
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(0, "The server cannot be reached; is it still running?");
  }
  const found = await answer.json().catch(() => null);
  if (!answer.ok) throw new Failure(answer.status, found?.error?.message ?? `The server answered ${answer.status}.`);
  return found;
}

// Runs `start` now, and again with each key that is typed while the server refuses it.
export function withKey(start, report) {
  const form = document.getElementById("key-form");
  const field = document.getElementById("key");
  const run = async () => {
    report("");
    try {
      await start();
      form.hidden = true;
    } catch (error) {
      form.hidden = error.status !== 401;
      report(error.message);
      if (!form.hidden) field.focus();
    }
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    key = field.value.trim();
    run();
  });
  return run();
}

// An element with text in it, which is never taken for HTML.
export function element(tag, text = "", attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}
