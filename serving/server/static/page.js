import { element, fetched, withKey } from "./fetching.js";

const at = (id) => document.getElementById(id);
const address = (rest) => `/v1/bundles/${encodeURIComponent(at("bundle").value)}/${rest}`;
const asks = () => document.querySelector("input[name=asks]:checked").value;
let bundles = [];
let typing = new AbortController();
let asking = new AbortController();

function report(message) {
  at("error").textContent = message;
}

async function guarded(work) {
  report("");
  try {
    await work();
  } catch (error) {
    if (error.name === "AbortError") return;
    at("status").textContent = "";
    report(error.message);
  }
}

async function start() {
  bundles = (await fetched("/v1/bundles")).bundles;
  at("bundle").replaceChildren(...bundles.map(({ name }) => element("option", name, { value: name })));
  await chooseBundle();
}

async function chooseBundle() {
  const bundle = bundles.find(({ name }) => name === at("bundle").value);
  const facts = [bundle.dataset, `grade ${bundle.grade}`, bundle.precision];
  facts.push(`${bundle.entities} entities`, `${bundle.relations} relations`);
  const mrr = bundle.metrics.test?.mrr;
  if (mrr !== undefined) facts.push(`test MRR ${mrr.toFixed(3)}`);
  at("about").textContent = facts.join(" · ");
  at("reranked-label").hidden = !bundle.reranks;
  at("reranked").checked = false;
  const { relations } = await fetched(address("relations"));
  at("relation").replaceChildren(...relations.map(({ id, text }) => element("option", text || id, { value: id })));
  await complete();
}

async function complete() {
  typing.abort();
  typing = new AbortController();
  const query = new URLSearchParams({ query: at("entity").value.slice(0, 200), limit: 20 });
  const { entities } = await fetched(address(`entities?${query}`), undefined, typing.signal);
  at("entities").replaceChildren(...entities.map(({ id, name }) => element("option", name, { value: id })));
}

async function ask() {
  asking.abort();
  asking = new AbortController();
  at("status").textContent = "Asking …";
  at("answers").hidden = true;
  const given = asks() === "tail" ? "head" : "tail";
  const isText = at("is-text").checked;
  const question = {
    [given]: at("entity").value,
    [`${given}_is_text`]: isText,
    relation: at("relation").value,
    k: at("k").valueAsNumber,
    exclude_known: !at("include-known").checked,
    reranked: at("reranked").checked,
  };
  const started = performance.now();
  const { predictions } = await fetched(address(`${asks()}s`), question, asking.signal);
  const took = Math.round(performance.now() - started);
  const asked = { given, key: at("entity").value, relation: question.relation, isText, address: address("explain") };
  show(predictions, asked);
  const count = predictions.length === 1 ? "1 answer" : `${predictions.length} answers`;
  at("status").textContent = predictions.length ? `${count} in ${took} ms.` : "No answers are left: all are known.";
}

function show(predictions, asked) {
  const relation = at("relation").selectedOptions[0].textContent;
  at("asked").textContent = asked.given === "head" ? `${asked.key} – ${relation} – ?` : `? – ${relation} – ${asked.key}`;
  at("answers").tBodies[0].replaceChildren(...predictions.map((found, index) => row(found, index + 1, asked)));
  at("answers").hidden = predictions.length === 0;
}

function row(found, rank, asked) {
  const made = element("tr");
  const button = element("button", "Explain", { type: "button", "aria-expanded": "false" });
  button.setAttribute("aria-label", `Explain ${found.name}`);
  button.addEventListener("click", () => guarded(() => explain(made, button, found, asked)));
  const why = element("td");
  why.append(button);
  made.append(element("td", rank), element("td", found.score.toFixed(4)), element("td", found.name));
  made.append(element("td", found.entity), why);
  return made;
}

async function explain(answer, button, found, asked) {
  if (button.getAttribute("aria-expanded") === "true") {
    answer.nextElementSibling.remove();
    button.setAttribute("aria-expanded", "false");
    return;
  }
  const other = asked.given === "head" ? "tail" : "head";
  const triple = { [asked.given]: asked.key, [other]: found.entity, relation: asked.relation };
  const { explanation } = await fetched(asked.address, { ...triple, asks: other, is_text: asked.isText });
  if (button.getAttribute("aria-expanded") === "true") return;
  const cell = element("td", "", { colspan: 5 });
  cell.append(shown(explanation));
  const below = element("tr", "", { class: "why" });
  below.append(cell);
  answer.after(below);
  button.setAttribute("aria-expanded", "true");
  at("status").textContent = `Explained ${found.name}.`;
}

function shown(explanation) {
  const list = element("dl");
  const fact = (name, ...parts) => {
    const detail = element("dd");
    detail.append(...parts);
    list.append(element("dt", name), detail);
  };
  const [entity, relation] = explanation.question_text;
  fact("Read as", `${entity} – ${relation}`);
  fact("Answer", explanation.answer_text);
  const { rank, reranked_rank: moved, hops } = explanation;
  const known = explanation.is_known ? "; the graph knows this answer" : "";
  fact("Rank", `${rank}${moved === null ? "" : `, re-ranked ${moved}`}, known answers left out${known}`);
  if (hops !== null) fact("Edges apart", String(hops));
  if (explanation.neighbours.length) fact("Neighbours read", explanation.neighbours.join(", "));
  const alike = element("ul");
  for (const near of explanation.nearest) {
    const cosines = [near.head_cosine, near.tail_cosine].map((one) => (one === null ? "–" : one.toFixed(2)));
    alike.append(element("li", `${near.head} – ${near.relation} – ${near.tail} (${cosines.join(", ")})`));
  }
  fact("Known triples most alike (cosines of head, tail)", explanation.nearest.length ? alike : "none");
  return list;
}

at("question").addEventListener("submit", (event) => {
  event.preventDefault();
  guarded(ask);
});
at("bundle").addEventListener("change", () => guarded(chooseBundle));
at("entity").addEventListener("input", () => guarded(complete));
for (const choice of document.querySelectorAll("input[name=asks]")) {
  choice.addEventListener("change", () => {
    at("entity-label").textContent = asks() === "tail" ? "Head" : "Tail";
  });
}
withKey(start, report);
