// Curves: the one that is pointed at or chosen in the legend is highlighted in all panels of its figure.
each(".plate", (plate) => {
  const buttons = new Map([...plate.querySelectorAll(".legend button")].map((button) => [button.value, button]));
  const pinned = new Set();
  let over = null;

  // What the caption of a panel says of a detector: its numbers in the table, where the panel is an OOD set.
  const numbers = (title, name) => {
    const column = data.columns.indexOf(title);
    const row = [...by("results").tBodies[0].rows].find((r) => r.cells[0].dataset.value === name);
    if (column < 0 || !row) return name;
    const [fpr95, auroc] = [1, 2].map((i) => row.cells[2 * column + i].dataset.value);
    return `AUROC ${auroc}, FPR95 ${fpr95}: ${name}`;
  };
  const panels = [...plate.querySelectorAll("figure")].map((figure) => {
    const caption = figure.querySelector("figcaption");
    const title = caption.textContent;
    const said = made("span", { className: "line" });
    caption.append(said);
    return { title, said };
  });

  const show = () => {
    const lit = new Set(over === null ? pinned : [...pinned, over]);
    plate.classList.toggle("dimmed", lit.size > 0);
    plate.querySelectorAll("[data-line]").forEach((line) => line.classList.toggle("lit", lit.has(line.dataset.line)));
    buttons.forEach((button, line) => button.classList.toggle("lit", lit.has(line)));
    const last = [...lit].pop();
    const name = last === undefined ? "" : buttons.get(last).textContent;
    panels.forEach(({ title, said }) => { said.textContent = name && numbers(title, name); });
  };
  const point = (line) => { over = line; show(); };
  const say = () => {
    const names = [...pinned].map((line) => buttons.get(line).textContent);
    plate.querySelector("[role=status]").textContent = names.length ? `Highlighted: ${names.join(", ")}.` : "";
  };
  const pin = (line) => {
    if (!pinned.delete(line)) pinned.add(line);
    buttons.get(line).setAttribute("aria-pressed", pinned.has(line));
    over = pinned.has(line) ? line : null;
    show();
    say();
  };

  buttons.forEach((button, line) => {
    button.disabled = false;
    button.addEventListener("click", () => pin(line));
    for (const event of ["pointerenter", "focus"]) button.addEventListener(event, () => point(line));
    for (const event of ["pointerleave", "blur"]) button.addEventListener(event, () => point(null));
  });
  plate.querySelectorAll("[data-line]").forEach((drawn) => {
    const line = drawn.dataset.line;
    drawn.style.setProperty("--lit", buttons.get(line).style.getPropertyValue("--lit"));
    drawn.querySelectorAll(":scope > path").forEach((path) => {
      const wide = path.cloneNode();  // a thin line is hard to hit
      wide.removeAttribute("style");
      wide.setAttribute("class", "hit");
      wide.addEventListener("pointerenter", () => point(line));
      wide.addEventListener("pointerleave", () => point(null));
      wide.addEventListener("click", () => pin(line));
      drawn.append(wide);
    });
  });
  plate.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    pinned.forEach((line) => buttons.get(line).setAttribute("aria-pressed", false));
    pinned.clear();
    over = null;
    show();
    say();
  });
});
