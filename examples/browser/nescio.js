// A detector that `nescio export … --preprocess nhwc` wrote, in a browser: images in, verdicts out.

import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs";

ort.env.wasm.wasmPaths = new URL("./node_modules/onnxruntime-web/dist/", import.meta.url).href;
ort.env.wasm.numThreads = 1; // more need headers that a plain file server does not send

export class Detector {
  static async load(url) {
    const answer = await fetch(url);
    if (!answer.ok) throw new Error(`${url}: ${answer.status} ${answer.statusText}`);
    const bytes = new Uint8Array(await answer.arrayBuffer());
    // severity 3: errors alone; it would warn that the threshold is an optional input
    return new Detector(await ort.InferenceSession.create(bytes, { logSeverityLevel: 3 }), metadata(bytes));
  }

  constructor(session, about) {
    this.session = session;
    this.promise = about.promise;
    this.classes = JSON.parse(about.classes);
    this.transform = Object.fromEntries(about.transform.split(",").map((part) => part.split("=")));
    // calibration scores in ascending order, for all classes or for each group of them
    this.tables = JSON.parse(about.p_values);
    if (!JSON.parse(about.inputs).image.includes(`${this.transform.crop}, 3)`)) {
      throw new Error("this page takes a graph of RGB pixels: export it with --preprocess nhwc");
    }
  }

  // A verdict on an image: a File, a Blob or an ImageData.
  async judge(image) {
    const crop = Number(this.transform.crop);
    const pixels = new ort.Tensor("uint8", prepared(await decoded(image), this.transform), [1, crop, crop, 3]);
    const { logits, score, p_value, accepted } = await this.session.run({ image: pixels });
    const index = logits.data.indexOf(logits.data.reduce((a, b) => Math.max(a, b)));
    return {
      label: this.classes[index],
      index,
      score: score.data[0],
      pValue: p_value.data[0],
      accepted: Boolean(accepted.data[0]),
    };
  }

  // The least accepted score if this share of new ID images may be rejected; a class has its group's.
  threshold(share, index) {
    const { scores } = this.tables.find((t) => t.classes === null || t.classes.includes(index));
    const rank = Math.floor(Number((share * (scores.length + 1)).toFixed(9)));
    return rank < 1 ? -Infinity : scores[Math.min(rank, scores.length) - 1];
  }
}

// What an ONNX file says of itself: pairs of text in field 14 of the file's record (protobuf).
export function metadata(bytes) {
  const text = new TextDecoder();
  const pairs = {};
  for (const [field, part] of fields(bytes)) {
    if (field !== 14) continue;
    const entry = Object.fromEntries(fields(part));
    pairs[text.decode(entry[1])] = text.decode(entry[2] ?? new Uint8Array());
  }
  return pairs;
}

function* fields(bytes) {
  let at = 0;
  const number = () => {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const tag = number();
    const kind = tag & 7;
    if (kind === 0) number();
    else if (kind === 1) at += 8;
    else if (kind === 5) at += 4;
    else if (kind === 2) {
      const length = number();
      yield [tag >> 3, bytes.subarray(at, at + length)];
      at += length;
    } else throw new Error("this is not an ONNX file");
  }
}

async function decoded(image) {
  if (image instanceof ImageData) return image;
  const bitmap = await createImageBitmap(image, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d", { willReadFrequently: true });
  canvas.drawImage(bitmap, 0, 0);
  return canvas.getImageData(0, 0, bitmap.width, bitmap.height);
}

// Resized and cropped as nescio does it: the short side to `resize`, then a square from the centre, without alpha.
export function prepared({ data, width, height }, { resize, crop, interpolation }) {
  const side = Number(crop);
  const short = Math.min(width, height);
  const [w, h] = [width, height].map((n) => (n === short ? Number(resize) : Math.floor((Number(resize) * n) / short)));
  const large = resized({ data, width, height }, w, h, FILTERS[interpolation]);
  const [left, top] = [w, h].map((n) => roundHalfToEven((n - side) / 2));
  const square = new Uint8Array(side * side * 3);
  for (let y = 0, to = 0; y < side; y++) {
    for (let x = 0; x < side; x++) {
      const from = 4 * ((top + y) * w + left + x);
      for (let c = 0; c < 3; c++) square[to++] = large[from + c];
    }
  }
  return square;
}

const roundHalfToEven = (x) => (x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));

const cubic = (x) => {
  const a = -0.5;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
};
const FILTERS = {
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { support: 2, weight: (x) => cubic(Math.abs(x)) },
};

// Antialiased resizing with the numbers of Pillow: a canvas would give other pixels, and so other scores.
function resized({ data, width, height }, w, h, filter) {
  if (!filter) throw new Error("this page knows bilinear and bicubic resizing");
  const across = w === width ? data : along(data, weights(width, w, filter), height, 4, 4 * width, 4 * w);
  return h === height ? across : along(across, weights(height, h, filter), w, 4 * w, 4, 4);
}

const BITS = 22;

function weights(from, to, { support, weight }) {
  const scale = from / to;
  const spread = Math.max(scale, 1);
  return Array.from({ length: to }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support * spread + 0.5));
    const end = Math.min(from, Math.trunc(centre + support * spread + 0.5));
    const raw = Array.from({ length: end - first }, (_, k) => weight((k + first - centre + 0.5) / spread));
    const sum = raw.reduce((a, b) => a + b, 0);
    return { first, shares: raw.map((v) => Math.trunc((v / sum) * 2 ** BITS + Math.sign(v) * 0.5)) };
  });
}

// One direction: `step` between two samples that are added, `line` between two lines of the input, `lineOut` of the output.
function along(data, parts, lines, step, line, lineOut) {
  const out = new Uint8ClampedArray(4 * parts.length * lines);
  for (let y = 0; y < lines; y++) {
    parts.forEach(({ first, shares }, i) => {
      for (let c = 0; c < 4; c++) {
        let sum = 2 ** (BITS - 1);
        shares.forEach((share, k) => (sum += share * data[y * line + (first + k) * step + c]));
        out[y * lineOut + i * step + c] = Math.floor(sum / 2 ** BITS);
      }
    });
  }
  return out;
}
