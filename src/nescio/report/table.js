(() => {
  // The table: a click sorts by a column, its better end first; a second click turns the order round.
  const body = document.querySelector("#results tbody");
  const numeric = new Intl.Collator("en", { numeric: true });
  const sort = (button) => {
    const heading = button.parentElement;
    const first = "down" in button.dataset ? "descending" : "ascending";
    const second = first === "ascending" ? "descending" : "ascending";
    const order = heading.getAttribute("aria-sort") === first ? second : first;
    const value = (row) => row.cells[button.dataset.column].dataset.value;
    const compared = (a, b) => button.dataset.column === "0"
      ? numeric.compare(value(a), value(b)) : value(a) - value(b);
    const sign = order === "ascending" ? 1 : -1;
    body.append(...[...body.rows].sort((a, b) => sign * compared(a, b)));
    each("#results th[aria-sort]", (other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", order);
    by("sorted").textContent = `Sorted by ${button.getAttribute("aria-label") || button.textContent}, ${order}.`;
  };
  each("#results thead button", (button) => {
    button.disabled = false;
    button.addEventListener("click", () => sort(button));
  });

  // The filter: rows whose name or spec has every word, and the columns of a view.
  const rows = [...body.rows];
  const cells = (column) => [
    document.querySelectorAll("#results thead tr:first-child th")[column + 1],
    ...[...document.querySelectorAll("#results thead tr:last-child th")].slice(2 * column, 2 * column + 2),
    ...rows.flatMap((row) => [row.cells[2 * column + 1], row.cells[2 * column + 2]]),
  ];
  const filter = () => {
    const words = by("filter").value.toLowerCase().split(/\s+/);
    rows.forEach((row) => {
      const text = [...row.cells[0].querySelectorAll("code, small")].map((part) => part.textContent).join(" ").toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    });
    const shown = rows.filter((row) => !row.hidden).length;
    by("counted").textContent = shown === rows.length ? "" : `${shown} of ${rows.length} detectors`;
  };
  by("filter").addEventListener("input", filter);
  filter();
  const view = by("view");
  if (view) {
    view.addEventListener("change", () => {
      const kept = data.views[view.selectedIndex];
      data.columns.forEach((_, column) => cells(column).forEach((cell) => { cell.hidden = !kept.includes(column); }));
    });
  }
  const beside = by("beside");
  if (beside) {
    const show = () => by("results").classList.toggle("plain", !beside.checked);
    beside.checked = !matchMedia("(max-width: 40rem)").matches;  // a small screen has no room for them
    beside.addEventListener("change", show);
    show();
  }

  // Copies: browsers that refuse a page its clipboard still copy a selection.
  const copied = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      const area = made("textarea", { value: text, className: "unseen" });
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      return done;
    }
  };
  each("button.copy", (button) => button.addEventListener("click", async () => {
    const text = button.dataset.copy || by(button.dataset.from).textContent;
    const done = await copied(text);
    button.focus();
    button.textContent = done ? "copied" : "not copied";
    by("said").textContent = done ? `Copied: ${text}` : "The browser does not allow copying here.";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  }));
})();
