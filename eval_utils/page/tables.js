// Tables that are sorted by a click on a heading, and commands to copy.

// ---- tables ----

function showOrder(header, order) {
  header.setAttribute("aria-sort", order ?? "none");
}

// The number at the start of a cell. A cell without one is below all numbers.
function cellNumber(cell) {
  const value = parseFloat(cell.textContent.trim().replace(/,/g, "").replace(/^</, ""));
  return Number.isNaN(value) ? -Infinity : value;
}

function sortTable(header) {
  const table = header.closest("table");
  const rows = [...table.tBodies[0].rows];
  rows.forEach((row, place) => { row.dataset.place ??= place; });
  const column = header.cellIndex;
  const orders = column === 0 ? ["ascending", "descending", "none"] : ["descending", "ascending", "none"];
  const order = orders[(orders.indexOf(header.getAttribute("aria-sort")) + 1) % 3];
  for (const other of header.parentNode.cells) showOrder(other, other === header ? order : "none");
  const compare = (a, b) => {
    if (order === "none") return a.dataset.place - b.dataset.place;
    const [first, second] = order === "ascending" ? [a.cells[column], b.cells[column]] : [b.cells[column], a.cells[column]];
    return column === 0 ? collator.compare(first.textContent, second.textContent) : Math.sign(cellNumber(first) - cellNumber(second)) || 0;
  };
  table.tBodies[0].append(...rows.sort(compare));
}

for (const header of document.querySelectorAll("table.sortable thead th")) {
  if (header.closest("table").tBodies[0].rows.length < 2) continue;
  const button = el("button", "", header.firstChild.textContent);
  button.type = "button";
  header.firstChild.replaceWith(button);
  showOrder(header, "none");
  button.addEventListener("click", () => sortTable(header));
}

for (const button of document.querySelectorAll(".copy")) {
  const command = button.previousElementSibling;
  button.hidden = false;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(command.textContent);
    } catch { // no permission, or a page from a server without TLS
      getSelection().selectAllChildren(command);
      document.execCommand("copy");
    }
    button.nextElementSibling.textContent = "copied";
    setTimeout(() => { button.nextElementSibling.textContent = ""; }, 2000);
  });
}
