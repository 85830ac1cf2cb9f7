// The page: choose a bundle, ask, read the answers. What anyone typed or a bundle holds is shown as text only.

import { Scorer } from "./scorer.js";
import { addressSource, folderSource, zipSource } from "./source.js";

const SUGGESTIONS = 20;
const byId = (id) => document.getElementById(id);
const settings = new URLSearchParams(location.search);

let scorer = null;
let waiting = Promise.resolve(); // loads and questions run one after another, in the order they came

/** Run a task when those before it are done; if it fails, its message becomes the page's one line of error. */
function inTurn(task) {
  byId("error").textContent = "";
  byId("status").textContent = "Working…";
  waiting = waiting.then(async () => {
    try {
      await task();
    } catch (error) {
      byId("status").textContent = "";
      byId("error").textContent = String(error.message ?? error).replace(/\s+/g, " ");
    }
  });
}

async function load(open) {
  byId("fields").disabled = true;
  byId("answers").hidden = true;
  const start = performance.now();
  await scorer?.close();
  scorer = null;
  const source = await open();
  scorer = await Scorer.load(source, checkedThreads());
  const { manifest, entities, relations } = scorer.bundle;
  byId("relation").replaceChildren(...relations.map(({ id, text }) => new Option(`${text} (${id})`, id)));
  byId("k").max = entities.length;
  byId("reranked").checked = false;
  byId("reranked").disabled = manifest.rerank === null;
  byId("fields").disabled = false;
  const counts = `${entities.length} entities, ${relations.length} relations`;
  byId("status").textContent = `${source.name}: ${counts}, read in ${milliseconds(start)} ms. Ask a question.`;
}

async function ask() {
  const start = performance.now();
  const question = {
    entity: byId("entity").value,
    relation: byId("relation").value,
    k: byId("k").valueAsNumber,
    inverse: byId("asked").value === "heads",
    isText: byId("is-text").checked,
    excludeKnown: byId("exclude-known").checked,
    reranked: byId("reranked").checked,
  };
  const answers = await scorer.ask(question);
  const took = milliseconds(start);
  const { entity, relation, inverse } = question;
  byId("asking").textContent = inverse ? `?, ${relation}, ${entity}` : `${entity}, ${relation}, ?`;
  byId("answers").tBodies[0].replaceChildren(...answers.map(row));
  byId("answers").hidden = false;
  byId("status").textContent = `${answers.length} answers in ${took} ms.`;
}

function row({ id, name, score }, index) {
  const line = document.createElement("tr");
  const value = document.createElement("data");
  value.value = score;
  value.textContent = score.toFixed(4);
  for (const content of [String(index + 1), name, id, value]) line.insertCell().append(content);
  return line;
}

function suggest() {
  const typed = byId("entity").value;
  const wanted = scorer !== null && typed !== "" && !byId("is-text").checked;
  const found = wanted ? scorer.entities.holding(typed, SUGGESTIONS) : [];
  byId("matches").replaceChildren(...found.map((index) => {
    const { id, name } = scorer.bundle.entities[index];
    return new Option(name, id);
  }));
}

function checkedThreads() {
  const threads = Number(settings.get("threads") ?? 1);
  if (!Number.isInteger(threads) || threads < 1) {
    throw new Error(`threads must be a whole number from 1, found ${settings.get("threads")}`);
  }
  if (threads > 1 && !crossOriginIsolated) {
    throw new Error("several threads need a cross-origin isolated page: see the README, or leave threads out");
  }
  return threads;
}

function milliseconds(start) {
  return (performance.now() - start).toFixed(1);
}

byId("zip").addEventListener("change", ({ target }) => {
  const [file] = target.files;
  if (file) inTurn(() => load(() => zipSource(file, file.name)));
});
byId("folder").addEventListener("change", ({ target }) => {
  const files = Array.from(target.files);
  if (files.length) inTurn(() => load(() => folderSource(files)));
});
byId("question").addEventListener("submit", (event) => {
  event.preventDefault();
  inTurn(ask);
});
byId("entity").addEventListener("input", suggest);
if (settings.has("bundle")) inTurn(() => load(() => addressSource(settings.get("bundle"))));
