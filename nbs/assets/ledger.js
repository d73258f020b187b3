// The ledger's filters and sorting. Without this file the table still reads and prints.
(() => {
  const table = document.getElementById("ledger");
  if (!table) return;
  const body = table.tBodies[0], rows = Array.from(body.rows);
  const text = document.getElementById("ledger-text"), verdict = document.getElementById("ledger-verdict");
  const kind = document.getElementById("ledger-kind"), count = document.getElementById("ledger-count");
  const heads = Array.from(table.tHead.rows[0].cells);

  function filter() {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const said = row.textContent.toLowerCase();
      row.hidden = !(words.every(w => said.includes(w)) && (!verdict.value || row.dataset.verdict === verdict.value)
                     && (!kind.value || row.dataset.kind.split(" ").includes(kind.value)));
      if (!row.hidden) shown++;
    }
    count.textContent = `${shown} of ${rows.length} claims`;
  }

  function value(row, column) {
    const cell = row.cells[column], key = cell.dataset.sort ?? cell.textContent.trim();
    return key !== "" && !isNaN(key) ? Number(key) : key.toLowerCase();
  }

  function sort(column) {
    const way = heads[column].getAttribute("aria-sort") === "ascending" ? -1 : 1;
    heads.forEach(h => h.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", way > 0 ? "ascending" : "descending");
    const order = (a, b) => typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
    rows.sort((a, b) => way * order(value(a, column), value(b, column)));
    body.append(...rows);
  }

  heads.forEach((head, i) => head.querySelector("button").addEventListener("click", () => sort(i)));
  [text, verdict, kind].forEach(control => control.addEventListener("input", filter));
  filter();
})();
