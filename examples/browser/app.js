import { Detector } from "./nescio.js";

const [list, picker, slider, shown, promise, status] = ["list", "picker", "slider", "shown", "promise", "status"].map((id) =>
  document.getElementById(id),
);
const judged = []; // {verdict, row}
let detector;

function show({ verdict, row }) {
  const share = Number(slider.value);
  const accepted = slider.dataset.moved ? verdict.score >= detector.threshold(share, verdict.index) : verdict.accepted;
  row.className = accepted ? "accepted" : "rejected";
  row.querySelector(".verdict").textContent = accepted ? verdict.label : "I do not know";
  row.querySelector(".numbers").textContent = `score ${verdict.score.toFixed(3)}, p-value ${verdict.pValue.toFixed(3)}`;
}

async function add(file) {
  const row = document.getElementById("row").content.firstElementChild.cloneNode(true);
  row.querySelector("img").src = URL.createObjectURL(file);
  row.querySelector(".name").textContent = file.name;
  list.append(row);
  try {
    const verdict = await detector.judge(file);
    judged.push({ verdict, row });
    show({ verdict, row });
    row.dataset.verdict = JSON.stringify(verdict); // the test reads it
  } catch (error) {
    row.className = "failed";
    row.querySelector(".verdict").textContent = `cannot be read: ${error.message}`;
  }
}

async function addAll(files) {
  for (const file of files) await add(file);
}

picker.addEventListener("change", () => addAll(picker.files));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  if (detector) addAll(event.dataTransfer.files);
});
slider.addEventListener("input", () => {
  slider.dataset.moved = "yes";
  shown.textContent = `${(100 * slider.value).toFixed(1)} %`;
  judged.forEach(show);
});

try {
  detector = await Detector.load(new URLSearchParams(location.search).get("model") ?? "model.onnx");
  promise.textContent = detector.promise;
  picker.disabled = slider.disabled = false;
  status.textContent = "Ready.";
} catch (error) {
  status.textContent = `The detector cannot be loaded: ${error.message}`;
}
