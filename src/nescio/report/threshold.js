(() => {
  // What each threshold accepts: numbers of images are kept as differences.
  const shares = (of) => { let total = 0; return of.accepted.map((step) => (total += step) / of.images); };
  const detectors = data.detectors.map((d) => ({
    ...d,
    cuts: d.cuts.map((cut) => ({ ...cut, shares: shares(cut) })),
    sets: d.sets.map((set) => ({ ...set, shares: shares(set) })),
  }));
  const percent = (share) => (Math.round(share * 1e6) / 1e4).toFixed(1);
  const mark = "\u00a0%";
  const short = (number, digits = 3) => String(Number(number.toPrecision(digits)));
  const slider = by("threshold");
  let chosen = detectors[by("detector").value];
  const cutOf = (i) => chosen.cuts[Math.min(i, chosen.cuts.length - 1)];

  const [width, height, left, top, bottom] = [340, 160, 44, 16, 20];
  // Bins are drawn equally wide, whatever scores they span; a score lies in its bin as it does between its edges.
  const place = (edges, score) => {
    const bin = edges.findIndex((edge) => edge > score);
    if (bin < 0) return edges.length - 1;
    return bin === 0 ? 0 : bin - 1 + (score - edges[bin - 1]) / (edges[bin] - edges[bin - 1]);
  };
  const across = (set, position) => left + (width - left - 4) * position / set.id.length;
  const chart = (set) => {
    const shares = ["id", "ood"].map((name) => {
      const total = set[name].reduce((a, b) => a + b, 0);
      return set[name].map((count) => count / total * 100);
    });
    const highest = Math.max(...shares.flat());
    const up = (share) => (height - bottom - top) * share / highest;
    const step = (width - left - 4) / set.id.length;
    const bars = shares.flatMap((values, which) => values.map((share, bin) =>
      `<rect class="${which ? "ood" : "id"}" data-bin="${bin}" x="${(left + bin * step).toFixed(2)}" width="${step.toFixed(2)}"`
      + ` y="${(height - bottom - up(share)).toFixed(2)}" height="${up(share).toFixed(2)}"/>`));
    const ticks = [0, 0.5, 1].map((part) => {
      const at = Math.round(part * set.id.length);
      const anchor = ["start", "middle", "end"][part * 2];
      return `<text x="${across(set, at)}" y="${height - 6}" text-anchor="${anchor}">${short(set.edges[at], chosen.digits)}</text>`;
    });
    return `<svg class="chart" viewBox="0 0 ${width} ${height}" aria-hidden="true">`
      + `<rect class="side" y="${top}" height="${height - top - bottom}"/>${bars.join("")}`
      + `<path class="axis" d="M${left} ${height - bottom}H${width - 4}"/>${ticks.join("")}`
      + `<text x="${left - 4}" y="${top + 8}" text-anchor="end">${short(highest)} %</text>`
      + `<path class="cut"/><text class="kept" y="10">accepted \u2192</text></svg>`;
  };

  const draw = () => {
    by("panels").replaceChildren(...chosen.sets.map((set, i) => {
      const figure = made("figure", {}, made("figcaption", {}, data.sets[i], made("span")));
      if (!set.even) figure.firstChild.append(made("small", {}, "Most ID scores are nearly equal: drawn by rank."));
      figure.insertAdjacentHTML("beforeend", chart(set));  // numbers alone
      return figure;
    }));
  };

  const move = () => {
    const at = Number(slider.value);
    const accepted = [`${percent(cutOf(0).shares[at])}${mark} of ID`];
    chosen.sets.forEach((set, i) => {
      const position = place(set.edges, cutOf(i).thresholds[at]);
      const figure = by("panels").children[i];
      const x = across(set, position);
      figure.querySelectorAll("[data-bin]").forEach((bar) => {
        bar.classList.toggle("out", Number(bar.dataset.bin) + 0.5 < position);
      });
      figure.querySelector(".cut").setAttribute("d", `M${x} ${top - 6}V${height - bottom}`);
      figure.querySelector(".side").setAttribute("x", x);
      figure.querySelector(".side").setAttribute("width", Math.max(0, width - 4 - x));
      const label = figure.querySelector(".kept");
      label.setAttribute("x", x > width - 70 ? x - 4 : x + 4);
      label.setAttribute("text-anchor", x > width - 70 ? "end" : "start");
      const share = percent(set.shares[at]);
      figure.querySelector("span").textContent = `accepts ${share}${mark}, rejects ${(100 - share).toFixed(1)}${mark}`;
      accepted.push(`${share}${mark} of ${data.sets[i]}`);
    });
    const threshold = cutOf(0).thresholds[at];
    by("verdict").textContent = `${chosen.name} at ${short(threshold, Math.max(6, chosen.digits))} accepts ${accepted.join(", ")}.`;
    slider.setAttribute("aria-valuetext", `accepts ${accepted[0]}`);
  };

  // The pictures: those of the best detector stand in the page, the others come with the data.
  each("img[data-picture]", (image) => { data.pictures[image.dataset.picture].source = image.src; });
  const shown = ([number, score]) => {
    const picture = data.pictures[number];
    const image = made("img", { src: picture.source, alt: picture.name, title: picture.name });
    if (picture.tiny) image.className = "tiny";
    const line = (name, text) => (text ? [made("span", { className: name }, text.replaceAll("_", " "))] : []);
    const taken = picture.taken && `predicted: ${picture.taken}`;
    return made("li", {}, image, made("span", {}, score), ...line("label", picture.label), ...line("taken", taken));
  };
  const showMistakes = () => {
    const found = data.wrong[chosen.name];
    if (!by("wrong")) return;
    by("wrong").hidden = !found;
    by("left-out").hidden = Boolean(found);
    if (!found) return;
    each("#wrong [data-set]", (set) => {
      const items = (found[set.dataset.set] || []).map(shown);
      set.querySelector("ul").replaceChildren(...(items.length ? items : [made("li", { className: "none" }, "None.")]));
    });
  };

  each("select.detector", (select) => select.addEventListener("change", () => {
    each("select.detector", (other) => { other.value = select.value; });
    chosen = detectors[select.value];
    draw();
    move();
    showMistakes();
  }));
  slider.max = data.rejected.length - 1;
  slider.value = data.default;
  slider.addEventListener("input", move);
  by("reset").addEventListener("click", () => { slider.value = data.default; move(); });
  draw();
  move();
})();
