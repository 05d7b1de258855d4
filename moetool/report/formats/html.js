
"use strict";

const LEAST_TO_FILTER = 11;

const collator = new Intl.Collator("en", { numeric: true });

/** What a row is sorted by: the exact value behind a rounded one is the cell's title. */
function valueOf(row, place, numeric) {
  const cell = row.cells[place];
  const text = cell.title || cell.querySelector("[title]")?.title || cell.textContent;
  const number = numeric ? { yes: 1, no: 0 }[text] ?? parseFloat(text.replaceAll(",", "")) : text;
  return Number.isNaN(number) ? null : number;
}

/** The rows in order of a column; undefined values are last in both directions. */
function sorted(rows, place, numeric, direction) {
  const keyed = rows.map((row) => [valueOf(row, place, numeric), row]);
  keyed.sort(([one], [other]) => {
    if (one === null || other === null) return (one === null) - (other === null);
    return direction * (numeric ? one - other : collator.compare(one, other));
  });
  return keyed.map(([, row]) => row);
}

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** Headings that sort, a filter for long tables, and a button for the rows that are not shown at first. */
function enhance(table) {
  const [shown, waiting] = table.tBodies;
  const every = [...shown.rows, ...waiting.rows];
  if (every.length < 2) return;
  let rows = every;
  let limit = shown.rows.length;

  const filter = element("input", { type: "search", autocomplete: "off" });
  const status = element("span", {});
  status.setAttribute("role", "status");
  const all = element("button", { type: "button" }, `Show all ${every.length.toLocaleString("en")} rows`);
  if (every.length >= LEAST_TO_FILTER) {
    const label = element("label", {}, "Filter ", filter);
    table.parentElement.before(element("p", { className: "tools" }, label, status, all));
  }

  function update() {
    const words = filter.value.toLowerCase();
    const found = words ? rows.filter((row) => row.textContent.toLowerCase().includes(words)) : rows;
    const first = found.slice(0, limit);
    const kept = new Set(first);
    shown.replaceChildren(...first);
    waiting.replaceChildren(...rows.filter((row) => !kept.has(row)));
    // On paper the waiting rows are shown too, but for those that the filter leaves out.
    const matching = new Set(found);
    for (const row of rows) row.hidden = !matching.has(row);
    all.hidden = first.length === found.length;
    const [some, total] = [first.length, found.length].map((count) => count.toLocaleString("en"));
    status.textContent = first.length === every.length ? "" : `${some} of ${total} rows`;
  }

  filter.addEventListener("input", update);
  all.addEventListener("click", () => {
    limit = every.length;
    update();
  });
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, place) => {
    const button = element("button", { type: "button" }, ...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const ascending = heading.ariaSort !== "ascending";
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      rows = sorted(every, place, heading.classList.contains("number"), ascending ? 1 : -1);
      update();
    });
  });
  update();
}

/** Exact values and whole texts in place of what is shown: a pointer finds them as titles, keys and touch do not. */
function showTitles(on) {
  for (const cell of document.querySelectorAll("main :is(td, tbody th, dd, span)[title]")) {
    cell.dataset.short ??= cell.textContent;
    cell.textContent = on ? cell.title : cell.dataset.short;
  }
}

document.querySelectorAll("table").forEach(enhance);
if (document.querySelector("main [title]")) {
  const box = element("input", { type: "checkbox", id: "exact" });
  box.addEventListener("change", () => showTitles(box.checked));
  document.querySelector(".settings").append(element("label", {}, box, " exact values"));
}
