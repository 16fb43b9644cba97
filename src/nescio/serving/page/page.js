// Images go to /predict one by one, two at a time; what comes back is shown as it is. Text is never read as HTML.
const $ = (id) => document.getElementById(id);
const percent = (x, digits = 1) => `${(100 * x).toFixed(digits)} %`;
const AT_ONCE = 2, MOST_CLASSES = 20, EVERY = 5000, SIDE = 224;
const waiting = [];
let running = 0, geometry = { crop: 1, resize: 1 }, token = sessionStorage.getItem("nescio-token"), pasted = 0;

async function ask(path, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401) $("login").hidden = false;
  const body = await answer.json().catch(() => ({ detail: `HTTP ${answer.status}` }));
  if (!answer.ok) throw new Error(body.detail);
  return body;
}

async function begin() {
  try {
    const info = await ask("info");
    geometry = info.geometry;
    $("login").hidden = true;
    const { model, detector, calibration } = info;
    $("about").textContent = `${model.name}, ${model.n_classes} classes; detector ${detector.spec}; ${calibration.promise}.`;
    drift();
  } catch (error) {
    $("about").textContent = error.message;
  }
}

function add(files) {
  for (const file of files) {
    const card = $("card").content.firstElementChild.cloneNode(true);
    card.querySelector(".name").textContent = file.name;
    card.querySelector(".answer").textContent = "…";
    $("cards").prepend(card);
    waiting.push([file, card]);
  }
  next();
}

async function next() {
  while (running < AT_ONCE && waiting.length) {
    running += 1;
    const [file, card] = waiting.shift();
    judge(file, card).finally(() => { running -= 1; next(); });
  }
  const left = running + waiting.length;
  $("status").textContent = left ? `${left} ${left === 1 ? "image" : "images"} left` : "";
  if (!left) drift();
}

async function judge(file, card) {
  const form = new FormData();
  form.append("images", file, file.name);
  const picture = createImageBitmap(file).catch(() => null);
  try {
    const { verdicts: [verdict] } = await ask("predict?explain=true&count=false", { method: "POST", body: form });
    show(card, verdict, await picture);
  } catch (error) {
    card.classList.add("failed");
    card.querySelector(".answer").textContent = error.message;
    draw(card, await picture, null);
  }
}

function show(card, v, picture) {
  card.classList.add(v.accepted ? "accepted" : "rejected");
  card.querySelector(".answer").textContent = v.accepted ? v.label : "I do not know";
  const nearest = v.explanation;
  const rows = [
    [v.accepted ? "probability" : "classifier says", v.accepted ? percent(v.probability) : `${v.label} (${percent(v.probability)})`],
    ["p-value", `${v.p_value.toFixed(4)}: ${percent(v.p_value)} of ID images score this low or lower`],
    ["nearest class", `${nearest.nearest} (cosine ${nearest.cosine.toFixed(3)}${nearest.prototypes === "head" ? " to the head's weights" : ""})`],
  ];
  if (v.p_id !== null) rows.push(["P(ID | image)", percent(v.p_id)], [`P(${v.label} | image)`, percent(v.posterior)]);
  for (const [term, text] of rows) {
    const dt = document.createElement("dt"), dd = document.createElement("dd");
    dt.textContent = term;
    dd.textContent = text;
    card.querySelector("dl").append(dt, dd);
  }
  const map = nearest.patch_map, box = card.querySelector(".map");
  box.hidden = !map;
  box.querySelector("input").addEventListener("change", (e) => {
    box.querySelector(".meant").hidden = !e.target.checked;
    draw(card, picture, e.target.checked ? map : null);
  });
  draw(card, picture, null);
}

function draw(card, picture, map) {
  const canvas = card.querySelector("canvas"), pen = canvas.getContext("2d");
  pen.clearRect(0, 0, SIDE, SIDE);
  if (picture) { // what the network sees: the centre of the resized image
    const side = Math.min(picture.width, picture.height) * geometry.crop / geometry.resize;
    pen.imageSmoothingEnabled = side > SIDE;
    pen.drawImage(picture, (picture.width - side) / 2, (picture.height - side) / 2, side, side, 0, 0, SIDE, SIDE);
  }
  if (map) { // dim where the confidence is low
    const h = map.length, w = map[0].length;
    map.forEach((row, y) => row.forEach((confidence, x) => {
      pen.fillStyle = `rgba(10, 12, 16, ${(0.7 * (1 - confidence)).toFixed(3)})`;
      const [left, top] = [Math.round(x * SIDE / w), Math.round(y * SIDE / h)];
      pen.fillRect(left, top, Math.round((x + 1) * SIDE / w) - left, Math.round((y + 1) * SIDE / h) - top);
    }));
  }
  const seen = map ? "; bright where it sees the class that it predicts" : "";
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `the part of ${card.querySelector(".name").textContent} that the classifier sees${seen}`);
}

async function drift() {
  let p;
  try { p = await ask("drift"); } catch { return; }
  $("pictures").hidden = $("anew").hidden = !p.window;
  const line = $("verdict");
  line.classList.toggle("alarm", p.alarmed > 0);
  const last = p.alarms.at(-1);
  const compared = `${p.rejected} of the last ${p.window} images were rejected. Among as many new ID images, at most ${p.expected_rejected.toFixed(1)} would be, on average.`;
  if (!p.window) line.textContent = "No image has come in through the API yet. Images on this page do not count.";
  else if (last) line.textContent = `The input has changed since about image ${last.began}. This was noticed at image ${last.image} (${p.alarmed} ${p.alarmed === 1 ? "alarm" : "alarms"} in ${p.seen} images). ${compared}`;
  else line.textContent = `No change in ${p.seen} images (evidence ${p.evidence.toPrecision(2)}; 1 is an alarm). ${compared}`;
  $("window").textContent = p.window;
  const level = p.window / p.p_values.length, top = Math.max(...p.p_values, level);
  $("bars").style.setProperty("--level", `${100 * level / top}%`);
  $("bars").replaceChildren(...p.p_values.map((n, i) => {
    const bar = document.createElement("li");
    bar.style.height = `${100 * n / top}%`;
    bar.title = `${n} images from ${(i / 10).toFixed(1)} to ${((i + 1) / 10).toFixed(1)}`;
    return bar;
  }));
  const classes = [...p.classes].sort((a, b) => b.rejected - a.rejected || b.images - a.images);
  $("classes").replaceChildren(...classes.slice(0, MOST_CLASSES).map((c) => {
    const row = document.createElement("tr"), known = c.calibration;
    const number = (x) => x === null || x === undefined ? "–" : Number(x.toPrecision(4)).toString();
    const cells = [c.label, c.images, c.rejected, known ? `${known.rejected} of ${known.images}` : "–", number(c.median), number(known?.median)];
    row.append(...cells.map((text, i) => {
      const cell = document.createElement(i ? "td" : "th");
      if (!i) cell.scope = "row";
      cell.textContent = text;
      return cell;
    }));
    return row;
  }));
  $("more").textContent = classes.length > MOST_CLASSES ? `and ${classes.length - MOST_CLASSES} more classes, with fewer rejected images` : "";
}

$("files").addEventListener("change", (e) => { add(e.target.files); e.target.value = ""; });
for (const kind of ["dragover", "dragleave", "drop"]) {
  window.addEventListener(kind, (e) => {
    e.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") add(e.dataTransfer.files);
  });
}
window.addEventListener("paste", (e) => {
  const images = [...e.clipboardData.files];
  add(images.map((f) => new File([f], `pasted ${++pasted}`, { type: f.type })));
});
$("reset").addEventListener("click", async () => {
  try {
    await ask("drift/reset", { method: "POST" });
    drift();
  } catch (error) {
    $("verdict").textContent = error.message;
  }
});
$("login").addEventListener("submit", (e) => {
  e.preventDefault();
  token = $("token").value;
  sessionStorage.setItem("nescio-token", token);
  begin();
});
begin();
setInterval(() => { if (!document.hidden && !running) drift(); }, EVERY);
