import { element, fetched, withKey } from "./fetching.js";

function report(message) {
  document.getElementById("error").textContent = message;
}

async function start() {
  const api = await fetched("/openapi.json");
  const parts = [element("p", `${api.info.title} ${api.info.version}: ${api.info.summary}.`)];
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const method of ["get", "post"]) {
      if (methods[method]) parts.push(operation(path, method, methods[method], methods.parameters ?? []));
    }
  }
  parts.push(element("h2", "Shapes"));
  for (const [name, shape] of Object.entries(api.components.schemas)) parts.push(schema(name, shape));
  document.getElementById("document").replaceChildren(...parts);
}

function operation(path, method, facts, shared) {
  const section = element("section", "", { "aria-label": facts.operationId });
  section.append(element("h2", `${method.toUpperCase()} ${path}`), element("p", `${facts.summary}.`));
  const parameters = [...shared, ...(facts.parameters ?? [])];
  if (parameters.length) section.append(rows(["Parameter", "In", "Meaning", "Values"], parameters.map(
    (one) => [one.name, one.in, one.description, values(one.schema)])));
  const body = facts.requestBody?.content["application/json"];
  if (body) {
    section.append(element("h3", "Body"), element("p", values(body.schema)));
    section.append(element("pre", JSON.stringify(body.example, null, 2)));
  }
  section.append(element("h3", "Answers"), rows(["Status", "Meaning", "Shape"], Object.entries(facts.responses).map(
    ([status, one]) => [status, one.description, Object.values(one.content).map(({ schema }) => values(schema)).join()])));
  return section;
}

function schema(name, shape) {
  const section = element("section", "", { id: name });
  section.append(element("h3", name), element("p", shape.description ?? ""));
  const required = shape.required ?? [];
  section.append(rows(["Field", "Meaning", "Values"], Object.entries(shape.properties).map(
    ([field, one]) => [required.includes(field) ? `${field} (required)` : field, one.description ?? "", values(one)])));
  return section;
}

// A schema in a few words: its type, its limits, its default.
function values(one) {
  if (one.$ref) return one.$ref.split("/").pop();
  const choices = one.anyOf ?? one.oneOf;
  const words = choices ? [choices.map(values).join(" or ")] : [one.type ?? "any"];
  if (one.type === "array") words[0] = `list of ${values(one.items)}`;
  if (one.enum) words[0] = one.enum.map((value) => JSON.stringify(value)).join(" or ");
  const bounds = { minimum: "from", maximum: "to", minLength: "at least", maxLength: "at most",
    minItems: "at least", maxItems: "at most" };
  const limits = Object.entries(bounds).filter(([key]) => key in one).map(([key, word]) => `${word} ${one[key]}`);
  if (limits.length) words.push(`(${limits.join(", ")})`);
  if ("default" in one) words.push(`default ${JSON.stringify(one.default)}`);
  return words.join(" ");
}

function rows(titles, lines) {
  const table = element("table");
  const head = table.createTHead().insertRow();
  head.append(...titles.map((title) => element("th", title, { scope: "col" })));
  const body = table.createTBody();
  for (const line of lines) body.insertRow().append(...line.map((text) => element("td", text)));
  const around = element("div", "", { class: "scroll" });
  around.append(table);
  return around;
}

withKey(start, report);
