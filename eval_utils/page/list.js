// The list of rows: filters, order, the address, keys.

// ---- which rows, in which order ----

const form = document.querySelector(".filters");
const selected = new Set(); // ids
let matching = [];
let of = 0; // rows of the chosen set
let shown = 0;
let applied = null;

function search(row, words, systems) {
  const outputs = systems.map((system) => row.outputs[system]?.text ?? "");
  return [row.query, String(row.id), ...outputs].some((text) => text.toLowerCase().includes(words));
}

function hasOutcome(output, wanted) {
  if (!output) return false;
  if (wanted === "good") return !isWrong(output);
  if (wanted === "not-good") return isWrong(output);
  return DATA.outcomes[output.outcome].name === wanted;
}

function sorted(rows, order) {
  if (order === "file") return rows;
  if (order === "") return [...rows.filter((row) => isWrong(row.outputs[DATA.judged])), ...rows.filter((row) => !isWrong(row.outputs[DATA.judged]))];
  const key = order.replace(/^-/, "");
  const system = DATA.systems.findIndex((name) => key === `of ${name}`);
  const value = {
    id: (row) => String(row.id),
    query: (row) => row.query,
    prompt: (row) => row.outputs[DATA.judged]?.prompt ?? -1,
  }[key] ?? ((row) => row.outputs[system]?.outcome ?? -1);
  const compare = ([a], [b]) => (typeof a === "string" ? collator.compare(a, b) : a - b);
  const sign = order === key ? 1 : -1;
  return rows.map((row) => [value(row), row]).sort((a, b) => sign * compare(a, b)).map(([, row]) => row);
}

function filter() {
  // A click on a row takes the focus from a changed field. If the rows were redrawn then, the row would miss the click.
  const only = byId("only").checked;
  const wanted = JSON.stringify([Object.values(controls).map((control) => control.value), only && [...selected]]);
  if (wanted === applied) return false;
  applied = wanted;
  const words = controls.text.value.trim().toLowerCase();
  const outcome = controls.outcome.value;
  const system = controls.system.selectedIndex - 1; // not by its name, which may hold any text
  const systems = system < 0 ? DATA.systems.map((_, index) => index) : [system];
  const flip = controls.flip?.value ?? "";
  // A flip and the selected rows are of any set.
  let rows = flip === "" ? DATA.rows : DATA.flips[Number(flip)].map((index) => DATA.rows[index]);
  if (only) rows = rows.filter((row) => selected.has(String(row.id)));
  else if (flip === "") rows = rows.filter((row) => row.set === (controls.set?.value ?? ""));
  const total = rows.length;
  rows = rows.filter((row) => (outcome === "" || systems.some((index) => hasOutcome(row.outputs[index], outcome))) && (words === "" || search(row, words, systems)));
  matching = sorted(rows, controls.sort.value);
  of = only || flip !== "" ? DATA.rows.length : total;
  for (const header of document.querySelectorAll("[data-key]")) showOrder(header, { [header.dataset.key]: "ascending", [`-${header.dataset.key}`]: "descending" }[controls.sort.value]);
  byId("num-selected").textContent = number(selected.size);
  shown = 0;
  byId("list").replaceChildren();
  more();
  return true;
}

function more() {
  const next = matching.slice(shown, shown + PAGE);
  byId("list").append(...next.map(rowItem));
  shown += next.length;
  const all = matching.length === of ? `${number(of)} rows` : `${number(matching.length)} of ${number(of)} rows match`;
  byId("count").textContent = shown < matching.length ? `${all}; the first ${number(shown)} are shown` : all;
  byId("more").hidden = shown === matching.length;
  byId("more").textContent = `show ${number(Math.min(PAGE, matching.length - shown))} more`;
}

// ---- the filters in the address ----

// One entry of the history for each change, and one for all letters typed into the search.
function filterAndRemember(typing) {
  if (!filter()) return;
  const wanted = new URLSearchParams();
  for (const [name, control] of Object.entries(controls)) if (control.value.trim()) wanted.set(name, control.value.trim());
  if (byId("only").checked) for (const id of selected) wanted.append("row", id);
  const [page] = location.href.split("#");
  const address = wanted.size ? `${page}#${wanted}` : page;
  history[typing && history.state?.typing ? "replaceState" : "pushState"]({ typing }, "", address);
}

// Whether the address has filters: one without "=" is a place on the page, such as #record.
function readAddress() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  for (const [name, control] of Object.entries(controls)) {
    control.value = wanted.get(name) ?? "";
    if (control.selectedIndex < 0) control.value = "";
  }
  byId("only").checked = wanted.has("row");
  if (wanted.has("row")) selected.clear();
  for (const id of wanted.getAll("row")) selected.add(id);
  filter();
  return location.hash.includes("=");
}

// Links to a place on the page leave the address alone: it holds the filters.
function follow(address) {
  const hasFilters = address.includes("=");
  if (hasFilters) {
    history.pushState({}, "", address);
    readAddress();
  }
  const place = byId(hasFilters ? "rows" : address.slice(1));
  place.tabIndex = -1;
  place.focus({ preventScroll: true });
  place.scrollIntoView();
}

// ---- events ----

for (const header of document.querySelectorAll("[data-key]")) {
  header.addEventListener("click", () => {
    const { key } = header.dataset;
    controls.sort.value = { [key]: `-${key}`, [`-${key}`]: "" }[controls.sort.value] ?? key;
    filterAndRemember();
  });
}

let typing;
controls.text.addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(() => filterAndRemember(true), 120); });
form.addEventListener("change", () => filterAndRemember());
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(() => { selected.clear(); filterAndRemember(); })); // after the controls are reset
byId("more").addEventListener("click", () => {
  const first = shown;
  more();
  byId("list").children[first]?.querySelector(".line").focus();
});
document.addEventListener("click", (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return; // a new tab or window
  const link = event.target.closest("a[href^='#'], [data-link]");
  if (!link) return;
  event.preventDefault();
  follow(link.dataset.link ?? link.getAttribute("href"));
});
window.addEventListener("hashchange", readAddress);

function moveTo(step) {
  const lines = [...document.querySelectorAll(".line:not(.heading)")];
  const current = document.activeElement.closest(".item, details.row")?.querySelector(".line");
  const place = lines.indexOf(current);
  if (place < 0) { lines.find((line) => line.getBoundingClientRect().top >= 0)?.focus(); return; }
  if (step > 0 && place === lines.length - 1 && !byId("more").hidden) { more(); moveTo(step); return; }
  lines[place + step]?.focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select, textarea, input:not([type=checkbox])")) return;
  const box = event.target.closest(".item")?.querySelector(".select");
  const action = { "/": () => controls.text.focus(), j: () => moveTo(1), k: () => moveTo(-1), x: () => box?.click() }[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

const wrong = DATA.rows.filter((row) => row.set === "" && isWrong(row.outputs[DATA.judged])).slice(0, 3);
if (wrong.length) {
  const heading = el("div", "line heading", ...["", "id", "query", ...DATA.systems].map((name) => el("span", "", name)));
  heading.style.setProperty("--systems", DATA.systems.length);
  byId("wrong")?.append(heading, ...wrong.map(rowLine));
}
if (readAddress()) byId("rows").scrollIntoView();
