// One row of the page: its line, and its answers beside gold.

const DATA = JSON.parse(document.getElementById("data").textContent);
const PAGE = 50; // rows drawn at a time
const LONG = 20000; // characters of an output drawn at once
const SIGNS = { gold: "", equal: "=", changed: "≠", missing: "−", extra: "+", stray: "+" };
const byId = (id) => document.getElementById(id);
const controls = Object.fromEntries(["text", "set", "outcome", "system", "flip", "sort"].map((id) => [id, byId(id)]).filter(([, node]) => node));
const amount = (score) => (Array.isArray(score) ? score.map(amount).join(" of ") : Math.round(1000 * score) / 1000);
const number = (value) => value.toLocaleString("en-US");
const collator = new Intl.Collator("en", { numeric: true });
const isWrong = (output) => Boolean(output) && DATA.outcomes[output.outcome].tone !== "good";

// Untrusted texts enter the page only here, as text nodes.
function el(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children.filter((child) => child !== null));
  return node;
}

function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function chip(output, system) {
  if (!output) return el("span", "chip muted", el("span", "system", `${DATA.systems[system]}: `), "no output");
  const outcome = DATA.outcomes[output.outcome];
  const size = { width: 12, height: 12 };
  const swatch = svg("svg", { ...size, class: "swatch", "aria-hidden": "true" }, svg("rect", { ...size, class: `o${output.outcome}` }));
  if (outcome.texture) swatch.append(svg("rect", { ...size, fill: `url(#${outcome.texture})` }));
  const node = el("span", "chip", swatch, el("span", "system", `${DATA.systems[system]}: `), outcome.title);
  node.title = `${DATA.systems[system]}: ${outcome.title}`;
  return node;
}

// ---- one row, opened ----

function showCall(call) {
  const node = el("div", `call ${call.state}`);
  const words = { missing: "missing call", extra: "extra call", changed: "changed" }[call.state] ?? null;
  node.append(`${SIGNS[call.state]} `, el("span", "name", call.json ?? call.name), words === null ? "" : el("span", "tag", words));
  for (const [state, key, given, wanted] of call.arguments || []) {
    const value = el("div", "value", el("span", "key", `${key}: `), given ?? wanted);
    value.dir = "auto";
    if (state === "changed") value.append(el("div", "wanted-value", el("span", "was", "gold has "), wanted));
    if (call.state === "changed" && state !== "equal" && state !== "changed")
      value.append(el("span", "tag", { missing: "missing, gold has it", extra: "extra, gold has none", stray: "extra, beside name and arguments" }[state]));
    node.append(el("div", `argument ${call.state === "changed" ? state : ""}`, el("span", "", call.state === "changed" ? SIGNS[state] : ""), value));
  }
  return node;
}

const showCalls = (calls) => (calls.length ? calls.map(showCall) : [el("p", "muted", "[ ] no call")]);

// The marked character, or the end of a text that ends too early.
function showMark(text, place) {
  if (place >= text.length) return el("mark", "end", "end of the output");
  const character = String.fromCodePoint(text.codePointAt(place));
  return el("mark", character.trim() ? "" : "blank", character);
}

// Characters start to end of a text, with the mark if its place is among them.
function showPart(text, start, end, place) {
  if (place === null || place < start || place > end) return [text.slice(start, end)];
  const mark = showMark(text, place);
  const after = mark.className === "end" ? place : place + mark.textContent.length;
  return [text.slice(start, place), mark, text.slice(after, Math.max(after, end))];
}

function showText(text, place = null) {
  const start = place !== null && place > LONG ? place - LONG / 2 : 0;
  const pre = el("pre", "", ...showPart(text, start, start + LONG, place));
  pre.dir = "auto";
  if (text === "" && place === null) pre.append(el("span", "muted", "(empty)"));
  if (text.length <= LONG) return [pre];
  const all = el("button", "", `show all ${number(text.length)} characters`);
  all.type = "button";
  all.onclick = () => { pre.replaceChildren(...showPart(text, 0, text.length, place)); all.remove(); };
  return [pre, all];
}

function describeFault({ place, reason }, text) {
  if (place === null) return `Strict JSON fails: ${reason}.`;
  const where = place >= text.length ? "at the end of the output" : `at character ${number(place + 1)} of ${number(text.length)}, marked`;
  return `Strict JSON fails ${where}: ${reason}.`;
}

function showOutput(output, system, gold) {
  const node = el("div", "panel", el("h3", "", DATA.systems[system]));
  if (!output) { node.append(el("p", "muted", "no output")); return node; }
  const prompt = output.prompt === null ? "" : `, prompt ${number(output.prompt)} tokens`;
  const length = output.tokens === null ? "" : ` · ${number(output.tokens)} tokens`;
  node.append(el("p", "", chip(output, system), el("span", "small muted", `${length}, ended by ${output.finish}${prompt}`)));
  if (output.fault) {
    node.append(el("p", "small", describeFault(output.fault, output.text)), ...showText(output.text, output.fault.place));
    node.append(el("h4", "", "A forgiving parser reads"), ...(output.calls === null ? [el("p", "muted", "no calls")] : showCalls(output.calls)));
  } else if (output.calls === null) {
    node.append(el("p", "small", "Could not be read as calls. The output:"), ...showText(output.text));
  } else {
    node.append(...showCalls(output.calls));
    const same = output.calls.every((call) => call.state === "equal");
    if (same && isWrong(output)) node.append(el("p", "small", gold.length ? "The calls equal gold's; their order or form differs." : "Equal to gold, except for the form."));
    node.append(el("details", "", el("summary", "small", `raw output, ${number(output.text.length)} characters`), ...showText(output.text)));
  }
  const scores = el("p", "muted scores");
  DATA.values[output.scores].forEach((score, index) => {
    const { title, rate } = DATA.scores[index];
    if (score !== null) scores.append(el("span", "", rate ? `${score ? "✓" : "✗"} ${title}` : `${title} ${amount(score)}`));
  });
  node.append(el("details", "small", el("summary", "", "scores of this output"), scores));
  return node;
}

function showTool(tool) {
  const declared = tool.parameters && typeof tool.parameters === "object" ? tool.parameters : {};
  const parameters = Object.entries(declared.properties && declared.type === "object" ? declared.properties : declared);
  const node = el("details", "", el("summary", "", el("code", "", `${tool.name ?? "?"}(${parameters.map(([name]) => name).join(", ")})`), el("span", "small muted", ` ${tool.description ?? ""}`)));
  node.addEventListener("toggle", () => { if (node.open && node.children.length === 1) node.append(el("pre", "", JSON.stringify(tool, null, 2))); });
  return node;
}

function showRow(row) {
  const query = el("div", "query", row.query);
  query.dir = "auto";
  const about = `${row.id}${row.category === null ? "" : ` · ${row.category}`}`;
  const tools = el("section", "tools", el("h3", "", `Tools on offer (${row.tools.length})`), ...row.tools.map((index) => showTool(DATA.tools[index])));
  const gold = el("section", "", el("h3", "", "Gold: the reference calls"), ...showCalls(row.gold));
  const outputs = el("section", "outputs", ...row.outputs.map((output, system) => showOutput(output, system, row.gold)));
  return el("div", "body", query, el("p", "small muted", about), el("div", "outputs", tools, gold), outputs);
}

// The first differences of an answer from gold, in a line.
function showDifference(output) {
  const node = el("span", "difference small");
  const { fault, text } = output;
  if (fault && fault.place !== null) node.append(`${fault.reason}: `, el("code", "", ...showPart(text, Math.max(0, fault.place - 40), fault.place + 40, fault.place)));
  else if (fault) node.append(fault.reason);
  const lines = fault || output.calls === null ? [] : output.calls.flatMap((call) => {
    if (call.state !== "changed") return call.state === "equal" ? [] : [`${call.state} call ${call.name ?? call.json}`];
    return call.arguments.filter(([state]) => state !== "equal").map(([state, path, given, wanted]) => (
      { changed: `${path}: ${given}, gold has ${wanted}`, missing: `${path} is missing, gold has ${wanted}` }[state] ?? `extra ${path}: ${given}`));
  });
  const different = [...new Set(lines)];
  if (different.length) node.append(different.slice(0, 2).join("; ").slice(0, 300) + (different.length > 2 ? `; ${different.length - 2} more` : ""));
  return node;
}

function rowLine(row) {
  const question = el("span", "question", row.query.slice(0, 400));
  const judged = row.outputs[DATA.judged];
  const line = el("summary", "line", el("span", "mark"), el("span", "id", String(row.id)), question, ...row.outputs.map(chip), isWrong(judged) ? showDifference(judged) : null);
  const node = el("details", "row", line);
  node.style.setProperty("--systems", DATA.systems.length);
  node.addEventListener("toggle", () => {
    if (!node.open || node.children.length > 1) return;
    node.append(showRow(row));
    for (const mark of node.querySelectorAll("pre > mark")) mark.parentNode.scrollTop = mark.offsetTop - mark.parentNode.clientHeight / 2;
  });
  return node;
}

function rowItem(row) {
  const box = el("input", "select");
  box.type = "checkbox";
  box.checked = selected.has(String(row.id));
  box.setAttribute("aria-label", `select row ${row.id}`);
  box.addEventListener("change", () => {
    selected[box.checked ? "add" : "delete"](String(row.id));
    byId("num-selected").textContent = number(selected.size);
    if (byId("only").checked) filter();
  });
  return el("div", "item", box, rowLine(row));
}
