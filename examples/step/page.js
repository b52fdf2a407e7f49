// The page of step_runner.js: reads an image by rows, runs its steps, and shows what memory the runtime has.
//
// Files come from the form, or by name from the address: page.html?step=step.onnx&middle=...&image=page.npy&mean=..&std=..
// onnxruntime-web lies in node_modules here (npm install onnxruntime-web), or where ?ort= says.

// All memory that WebAssembly takes, by keeping what is made.
const memories = [];
WebAssembly.Memory = class extends WebAssembly.Memory {
  constructor(...given) {
    super(...given);
    memories.push(this);
  }
};

const { StepRunner } = await import("./step_runner.js");
const query = new URLSearchParams(location.search);
const folder = new URL(query.get("ort") ?? "node_modules/onnxruntime-web/dist/", location.href).href;
const by = (id) => document.getElementById(id);
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
const heap = () => memories.reduce((sum, memory) => sum + memory.buffer.byteLength, 0);

// Bytes of a stream in pieces of a wanted size; what was not asked for is not read.
class Pieces {
  constructor(stream) {
    this.reader = stream.getReader();
    this.waiting = new Uint8Array(0);
  }
  async take(size) {
    const piece = new Uint8Array(size);
    let at = 0;
    while (at < size) {
      if (!this.waiting.length) {
        const { value, done } = await this.reader.read();
        if (done) throw new Error(`the image file was cut off: ${size - at} bytes are missing`);
        this.waiting = value;
      }
      const part = this.waiting.subarray(0, size - at);
      piece.set(part, at);
      at += part.length;
      this.waiting = this.waiting.subarray(part.length);
    }
    return piece;
  }
}

// The shape of a .npy file of bytes.
async function shapeOf(pieces) {
  const magic = await pieces.take(10);
  if (String.fromCharCode(...magic.subarray(1, 6)) !== "NUMPY" || magic[6] !== 1) throw new Error("the image is no .npy file");
  const text = new TextDecoder().decode(await pieces.take(magic[8] + 256 * magic[9]));
  if (!/'\|u1'/.test(text) || !/'fortran_order': False/.test(text)) throw new Error("expected an image of bytes, in the order of C");
  const shape = text.match(/\(([^)]*)\)/)[1].split(",").filter((side) => side.trim()).map(Number);
  if (shape.length === 2) shape.push(1);
  if (shape.length !== 3) throw new Error(`expected rows x columns x channels, got ${shape}`);
  return shape;
}

// Bytes rows x columns x channels to numbers channels x rows x columns.
function numbers(bytes, rows, width, channels, mean, std) {
  const made = new Float32Array(bytes.length);
  for (let c = 0; c < channels; c++) {
    const scale = 1 / 255 / std[c % std.length];
    const shift = mean[c % mean.length] / std[c % std.length];
    for (let i = 0, to = c * rows * width; i < rows * width; i++) made[to + i] = bytes[i * channels + c] * scale - shift;
  }
  return made;
}

// The first channel of the first output that is a map, every so many rows and columns of it, in 600 rows at the most.
class Preview {
  constructor(canvas) {
    this.context = canvas.getContext("2d");
    this.canvas = canvas;
    this.top = 0;
  }
  add({ data, dims }, total) {
    const [, , rows, width] = dims;
    const scale = Math.min(320 / width, 600 / total, 1);
    if (!this.top) {
      this.canvas.width = Math.max(1, Math.round(width * scale));
      this.canvas.height = Math.max(1, Math.round(total * scale));
    }
    for (let row = 0; row < rows; row++, this.top++) {
      const line = this.context.createImageData(this.canvas.width, 1);
      for (let column = 0; column < this.canvas.width; column++) {
        const value = data[row * width + Math.floor(column / scale)];
        line.data.set([255 * value, 255 * value, 255 * value, 255], 4 * column);
      }
      if (Math.floor(this.top * scale) !== Math.floor((this.top - 1) * scale)) {
        this.context.putImageData(line, 0, Math.floor(this.top * scale));
      }
    }
  }
}

function draw(points, height) {
  const canvas = by("chart");
  const context = canvas.getContext("2d");
  const most = Math.max(...points.map(([, bytes]) => bytes)) * 1.2;
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.strokeStyle = context.fillStyle = getComputedStyle(document.body).color;
  context.lineWidth = 2;
  context.beginPath();
  for (const [row, bytes] of points) context.lineTo((row / height) * canvas.width, canvas.height * (1 - bytes / most));
  context.stroke();
  context.font = "14px system-ui, sans-serif";
  context.fillText(`${megabytes(points.at(-1)[1])} at row ${points.at(-1)[0]}`, 8, canvas.height - 10);
}

// What a run gives; `window.streamed` holds it for tests.
export async function stream({ step, middle, image, mean, std }) {
  const ort = await import(`${folder}ort.wasm.min.mjs`);
  ort.env.wasm.wasmPaths = folder;
  ort.env.wasm.numThreads = 1;
  const pieces = new Pieces(image);
  const [height, width, channels] = await shapeOf(pieces);
  const runner = await StepRunner.open(ort, step, { middle, height });
  const header = runner.header;
  if (header.images !== 1 || width !== header.width || channels !== header.channels) {
    throw new Error(`the image has ${width} columns and ${channels} channels, the step takes ${header.width} and ${header.channels}`);
  }
  by("state").textContent = megabytes(runner.stateBytes);
  by("whole").textContent = megabytes(4 * height * width * channels);
  const first = header.heads.find(({ row_dim: axis, shape }) => axis === 2 && shape.length === 4);
  const preview = new Preview(by("map"));
  const [outputs, points, began] = [{}, [[0, heap()]], performance.now()];
  const take = (found) => {
    for (const { name, row_dim: axis } of header.heads) {
      const part = found[name];
      if (!part) continue;
      // Rows of maps are counted and summed, not kept: keeping them would take the memory that is saved.
      const sum = part.data.reduce((total, value) => total + value, 0);
      const known = outputs[name] ?? { rows: 0, sum: 0 };
      outputs[name] = { rows: known.rows + (axis === null ? 1 : part.dims[axis]), sum: known.sum + sum };
      if (axis === null) outputs[name].data = [...part.data];
      if (first?.name === name) preview.add(part, Math.round((height * first.shape[2]) / header.rows));
    }
    by("outputs").textContent = Object.entries(outputs).map(([name, { rows }]) => `${name}: ${rows} rows`).join(", ") || "-";
  };
  for (let top = 0; top < height; top += header.rows) {
    const rows = Math.min(header.rows, height - top);
    const bytes = await pieces.take(rows * width * channels);
    take(await runner.push(numbers(bytes, rows, width, channels, mean, std), rows));
    points.push([top + rows, heap()]);
    by("rows").textContent = `${top + rows} of ${height}`;
    by("time").textContent = `${((performance.now() - began) / 1000).toFixed(1)} s`;
    by("heap").textContent = megabytes(heap());
    draw(points, height);
  }
  take(await runner.finish());
  by("time").textContent = `${((performance.now() - began) / 1000).toFixed(1)} s`;
  return { outputs, points, seconds: (performance.now() - began) / 1000 };
}

async function run(given) {
  by("error").textContent = "";
  try {
    window.streamed = await stream(given);
  } catch (error) {
    by("error").textContent = error.message;
    window.streamed = { error: error.message };
  }
}

const list = (text) => text.split(",").map(Number);
const fetched = async (name) => {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`cannot read ${name}: ${response.status}`);
  return response;
};
const bytes = async (source) => new Uint8Array(await source.arrayBuffer());

by("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const file = (id) => by(id).files[0];
  if (!file("step") || !file("image")) {
    by("error").textContent = "Choose a step and an image.";
    return;
  }
  await run({
    step: await bytes(file("step")), middle: file("middle") ? await bytes(file("middle")) : null,
    image: file("image").stream(), mean: list(by("mean").value), std: list(by("std").value),
  });
});

if (query.has("step") && query.has("image")) {
  try {
    await run({
      step: await bytes(await fetched(query.get("step"))),
      middle: query.has("middle") ? await bytes(await fetched(query.get("middle"))) : null,
      image: (await fetched(query.get("image"))).body,
      mean: list(query.get("mean") ?? "0"), std: list(query.get("std") ?? "1"),
    });
  } catch (error) {
    by("error").textContent = error.message;
    window.streamed = { error: error.message };
  }
}
