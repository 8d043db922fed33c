// The list of rows: filters, order, the address.

const DATA = JSON.parse(document.getElementById("data").textContent);
const PAGE = 50; // rows drawn at a time
const PARTS = { train: "training", eval: "evaluation", neither: "neither", made: "made" };
const byId = (id) => document.getElementById(id);
const number = (value) => value.toLocaleString("en-US");
const collator = new Intl.Collator("en", { numeric: true });
const controls = Object.fromEntries(["text", "finding", "part", "sort"].map((id) => [id, byId(id)]).filter(([, node]) => node));
let matching = [];
let shown = 0;

// Untrusted texts enter the page only here, as text nodes.
function el(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

// ---- one row ----

function severity(name) {
  const [title, kind] = DATA.findings[name] ?? [name, "note"];
  const node = el("span", `severity ${kind}`, title);
  node.title = `${kind}: ${title}`;
  return node;
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch { // cut, or no JSON
    return text;
  }
}

function showText(title, text) {
  const pre = el("pre", "", text);
  pre.dir = "auto";
  return el("section", "", el("h3", "", title), pre);
}

function toolName(text) {
  try {
    const tool = JSON.parse(text);
    return String(tool.name ?? tool.function?.name ?? "?");
  } catch {
    return "?";
  }
}

function showTool(text) {
  const node = el("details", "", el("summary", "", el("code", "", toolName(text))));
  node.addEventListener("toggle", () => { if (node.open && node.children.length === 1) node.append(el("pre", "", text)); });
  return node;
}

function showRow(row) {
  const query = el("div", "query", row.query);
  query.dir = "auto";
  const tools = el("section", "tools", el("h3", "", `Tools on offer (${row.tools.length})`), ...row.tools.map((index) => showTool(DATA.tools[index])));
  const body = el("div", "body", query);
  if (row.findings.length) {
    const named = new Set(row.details.map(([name]) => name));
    const lines = [...row.details, ...row.findings.filter((name) => !named.has(name)).map((name) => [name, ""])];
    body.append(el("section", "", el("h3", "", "Findings"), el("ul", "details", ...lines.map(([name, detail]) => el("li", "", severity(name), ` ${detail}`)))));
  }
  body.append(el("div", "outputs", tools, showText("Answer", pretty(row.answers))));
  if (row.words) body.append(showText("Words", row.words));
  return body;
}

function rowItem(row) {
  const tokens = row.tokens === null ? "–" : number(row.tokens);
  const marks = el("span", "item-findings", ...row.findings.map(severity));
  const line = el("summary", "line", el("span", "mark"), el("span", "id", String(row.id)), el("span", "question", row.query.slice(0, 400)), el("span", "right", tokens), el("span", "muted", PARTS[row.part] ?? row.part), marks);
  const node = el("details", "row", line);
  node.addEventListener("toggle", () => { if (node.open && node.children.length === 1) node.append(showRow(row)); });
  return node;
}

// ---- which rows, in which order ----

function matches(row, finding, part, words) {
  if (part && row.part !== part) return false;
  if (finding === "*" ? !row.findings.length : finding === "-" ? row.findings.length : finding && !row.findings.includes(finding)) return false;
  if (!words) return true;
  const texts = [String(row.id), row.query, row.answers, row.words, ...row.tools.map((index) => DATA.tools[index])];
  return texts.some((text) => text.toLowerCase().includes(words));
}

function sorted(rows, order) {
  const key = order.replace(/^-/, "");
  if (!key) return rows;
  const sign = order === key ? 1 : -1;
  const compare = key === "tokens" ? (a, b) => (a.tokens ?? -1) - (b.tokens ?? -1) : (a, b) => collator.compare(String(a[key]), String(b[key]));
  return [...rows].sort((a, b) => sign * compare(a, b));
}

function filter() {
  const { text, finding, part, sort } = controls;
  const words = text.value.trim().toLowerCase();
  matching = sorted(DATA.rows.filter((row) => matches(row, finding.value, part.value, words)), sort.value);
  shown = 0;
  byId("list").replaceChildren();
  more();
}

function more() {
  const next = matching.slice(shown, shown + PAGE);
  byId("list").append(...next.map(rowItem));
  shown += next.length;
  const all = matching.length === DATA.rows.length ? `${number(DATA.rows.length)} rows` : `${number(matching.length)} of ${number(DATA.rows.length)} rows match`;
  byId("count").textContent = shown < matching.length ? `${all}; the first ${number(shown)} are shown` : all;
  byId("more").hidden = shown === matching.length;
  byId("more").textContent = `show ${number(Math.min(PAGE, matching.length - shown))} more`;
}

// ---- the filters in the address ----

function filterAndRemember(typing) {
  filter();
  const wanted = new URLSearchParams();
  for (const [name, control] of Object.entries(controls)) if (control.value.trim()) wanted.set(name, control.value.trim());
  const [page] = location.href.split("#");
  history[typing && history.state?.typing ? "replaceState" : "pushState"]({ typing }, "", wanted.size ? `${page}#${wanted}` : page);
}

// Whether the address has filters: one without "=" is a place on the page, such as #lengths.
function readAddress() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  for (const [name, control] of Object.entries(controls)) {
    control.value = wanted.get(name) ?? "";
    if (control.selectedIndex < 0) control.value = "";
  }
  filter();
  return location.hash.includes("=");
}

if (controls.text) {
  const form = document.querySelector(".filters");
  let typing;
  controls.text.addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(() => filterAndRemember(true), 120); });
  form.addEventListener("change", (event) => { if (event.target !== controls.text) filterAndRemember(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => filterAndRemember())); // after the controls are reset
  byId("more").addEventListener("click", () => {
    const first = shown;
    more();
    byId("list").children[first]?.querySelector(".line").focus();
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#']");
    if (!link?.getAttribute("href").includes("=") || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    history.pushState({}, "", link.getAttribute("href"));
    readAddress();
    byId("rows").scrollIntoView();
  });
  window.addEventListener("hashchange", () => { if (location.hash.includes("=") || !location.hash) readAddress(); });
  if (readAddress()) byId("rows").scrollIntoView();
}
