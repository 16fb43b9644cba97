// The table of all methods: a filter above it, and a click on a column's head sorts.
(() => {
  const table = document.querySelector("article table"), body = table.tBodies[0];
  const filter = document.getElementById("methods-filter");
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/);
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
  [...table.tHead.rows[0].cells].forEach((head, i) => {
    const button = document.createElement("button");
    button.className = "methods-sort";
    button.title = `Sort by ${head.textContent}`;
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = (row) => row.cells[i].textContent.trim();
      const order = (a, b) => (up ? 1 : -1) * a.localeCompare(b, undefined, {numeric: true});
      const empty = (text) => Number(text === "");
      const compare = (a, b) => empty(value(a)) - empty(value(b)) || order(value(a), value(b));
      body.append(...[...body.rows].sort(compare));
    });
  });
})();
