"use strict";

/* Sorting: the headings of a sortable table become buttons. */
const valueOf = (row, column) => {
  const cell = row.cells[column];
  const raw = cell.dataset.value ?? cell.textContent;
  return raw === "" || isNaN(raw) ? raw : Number(raw);
};
const sortBy = (heading) => {
  const up = heading.getAttribute("aria-sort") !== "ascending";
  for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", up ? "ascending" : "descending");
  const body = heading.closest("table").tBodies[0];
  const column = heading.cellIndex;
  const rows = Array.from(body.rows).sort((left, right) => {
    const a = valueOf(left, column), b = valueOf(right, column);
    if (a === "" || b === "") return (a === "") - (b === "");
    const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
    return up ? order : -order;
  });
  body.append(...rows);
};
for (const heading of document.querySelectorAll("table.sortable > thead th:not([data-fixed])")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...heading.childNodes);
  button.addEventListener("click", () => sortBy(heading));
  heading.append(button);
}

/* Filters: within a group any pressed value will do; between groups all must hold. */
const filters = document.getElementById("filters");
if (filters) {
  const bundles = document.querySelectorAll("[data-model]");
  const counted = document.querySelectorAll("#speed-table tbody tr");
  const shown = document.getElementById("shown");
  const apply = () => {
    const wanted = new Map();
    for (const button of filters.querySelectorAll('[aria-pressed="true"]')) {
      const { key, value } = button.dataset;
      wanted.set(key, (wanted.get(key) ?? new Set()).add(value));
    }
    for (const one of bundles) one.hidden = Array.from(wanted).some(([key, values]) => !values.has(one.dataset[key]));
    const left = Array.from(counted).filter((row) => !row.hidden).length;
    shown.textContent = wanted.size ? `${left} of ${counted.length} bundles shown.` : `All ${counted.length} bundles shown.`;
  };
  filters.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.id === "show-all") {
      for (const other of filters.querySelectorAll("[aria-pressed]")) other.setAttribute("aria-pressed", "false");
    } else {
      button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
    }
    apply();
  });
  apply();
  filters.hidden = false;
}
