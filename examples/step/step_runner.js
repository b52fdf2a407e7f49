// A step (tiledse's export_step) with onnxruntime-web or onnxruntime-node: rows of an image in, rows of outputs out.
//
//   import * as ort from "onnxruntime-web/wasm";
//   const runner = await StepRunner.open(ort, bytesOfStep, { middle: bytesOfMiddle, height: 20000 });
//   for await (const { data, rows } of strips) use(await runner.push(data, rows));  // Float32Array, N x C x rows x W
//   use(await runner.finish());                                                    // { name: { data, dims } or null }
//   const bytes = await runner.save(); ... await other.load(bytes);              // between two pushes; any language goes on
//
// Depends on nothing: ONNX Runtime is handed in.

const UNKNOWN = 1 << 24; // rows of an image that has not ended
const KEY = "tiledse.step";
const STATE_KEY = "tiledse.step-state";

// What the file says of itself: an entry of its metadata. The weights are passed over.
export function headerOf(bytes) {
  let at = 0;
  const number = () => {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      if (at >= bytes.length || scale > 2 ** 49) throw new Error("no ONNX file, or it was cut off");
      const byte = bytes[at++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  };
  const text = new TextDecoder();
  while (at < bytes.length) {
    const tag = number();
    if (tag % 8 === 0) {
      number();
      continue;
    }
    if (tag % 8 !== 2) throw new Error("no ONNX file");
    const end = number() + at;
    if (end > bytes.length) throw new Error("the ONNX file was cut off");
    if (tag >> 3 === 14) {
      const entry = {};
      while (at < end) {
        const field = number() >> 3;
        const length = number();
        entry[field] = text.decode(bytes.subarray(at, at + length));
        at += length;
      }
      if (entry[1] === KEY) {
        const header = JSON.parse(entry[2]);
        if (header.format !== "tiledse.step/2") throw new Error(`expected tiledse.step/2, got ${header.format}`);
        return header;
      }
    }
    at = end;
  }
  throw new Error("no step; make one with: tiledse stream MODEL --tile T --rows R --export step.onnx");
}

// Of all that a state holds, in hexadecimal: [name, numbers] in the order of their names.
async function digestOf(step, seen, arrays) {
  if (!globalThis.crypto?.subtle) throw new Error("states need crypto.subtle, which browsers have on https and localhost alone");
  const text = new TextEncoder();
  const parts = [text.encode(`${step} ${seen}`)];
  for (const [name, { data }] of arrays) {
    parts.push(text.encode(name), new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  }
  const all = await new Blob(parts).arrayBuffer();
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", all));
  return [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

const sorted = (arrays) => Object.entries(arrays).sort(([a], [b]) => (a < b ? -1 : 1));

const count = (shape) => shape.reduce((product, side) => product * side, 1);

export class StepRunner {
  // ort: the module; step, middle: bytes of the files, Uint8Array; height: rows of an image, or null if not known;
  // options: of ort.InferenceSession.create.
  static async open(ort, step, { middle = null, height = null, options = {} } = {}) {
    const header = headerOf(step);
    if (middle !== null && headerOf(middle).identity !== header.identity) throw new Error("the middle is another step's");
    const sessions = { step: await ort.InferenceSession.create(step, options) };
    if (middle !== null) sessions.middle = await ort.InferenceSession.create(middle, options);
    return new StepRunner(ort, header, sessions, height);
  }

  constructor(ort, header, sessions, height) {
    this.ort = ort;
    this.header = header;
    this.sessions = sessions;
    this.height = header.height ?? height;
    if (this.height !== null) this.checkHeight(this.height);
    this.begin();
  }

  begin() {
    const { images, channels, window, width } = this.header;
    this.window = new Float32Array(images * channels * window * width);
    this.next = this.header.begin; // the number of the first row of the window
    this.seen = 0; // rows of the image that have come
    this.ended = false;
    this.given = this.header.heads.map(() => false);
    this.state = {};
    for (const { name, shape, start } of this.header.states) {
      this.state[`state.${name}`] = new this.ort.Tensor("float32", new Float32Array(count(shape)).fill(start), shape);
    }
  }

  get stateBytes() {
    return this.header.states.reduce((sum, { shape }) => sum + 4 * count(shape), 0);
  }

  // Take the next rows: a Float32Array of N x C x rows x W. Gives, by output, its new rows; null where there are none.
  async push(data, rows) {
    const { images, channels, window, width, heads } = this.header;
    const planes = images * channels;
    if (data.length !== planes * rows * width) {
      throw new Error(`row ${this.seen} and on: expected ${planes} x ${rows} x ${width} numbers, got ${data.length}`);
    }
    const most = this.height ?? UNKNOWN - 1;
    if (this.seen + rows > most) throw new Error(`${this.seen + rows} rows came, the image has ${most} at the most`);
    if (data.some((value) => !Number.isFinite(value))) throw new Error("a value is not finite");
    const gathered = heads.map(() => []);
    for (let top = 0; top < rows; ) {
      const held = this.seen - this.next; // below 0 where no step reads the next rows
      const now = Math.min(window - held, rows - top);
      const skip = Math.max(0, -held);
      for (let plane = 0; plane < planes && now > skip; plane++) {
        const from = (plane * rows + top + skip) * width;
        this.window.set(data.subarray(from, from + (now - skip) * width), (plane * window + held + skip) * width);
      }
      top += now;
      this.seen += now;
      if (held + now === window) await this.step(gathered, false);
    }
    if (this.seen === this.height) await this.drain(gathered);
    return this.joined(gathered);
  }

  // End the image, and give the rows that waited for that. The runner is then ready for the next image.
  async finish() {
    if (this.seen === 0) throw new Error("the image ended before its first row");
    if (this.height !== null && this.seen !== this.height) {
      throw new Error(`the image ended after ${this.seen} rows, expected ${this.height}`);
    }
    this.checkHeight(this.seen);
    const gathered = this.header.heads.map(() => []);
    if (!this.ended) await this.drain(gathered);
    this.begin();
    return this.joined(gathered);
  }

  // The state between two pushes as the bytes of a safetensors file, which load takes in any language.
  async save() {
    const { images, channels, window, width, states, identity } = this.header;
    const arrays = {};
    for (const { name, shape } of states) {
      arrays[name] = { shape, data: new Float32Array(await this.state[`state.${name}`].getData()) };
    }
    const low = Math.max(0, -this.next);
    const there = this.ended ? 0 : Math.max(0, this.seen - this.next - low);
    const waiting = new Float32Array(images * channels * there * width);
    for (let plane = 0; plane < images * channels; plane++) {
      const from = (plane * window + low) * width;
      waiting.set(this.window.subarray(from, from + there * width), plane * there * width);
    }
    arrays.waiting = { shape: [images, channels, there, width], data: waiting };
    const { seen, height, given } = this;
    const sha256 = await digestOf(identity, seen, sorted(arrays));
    const record = { format: "tiledse.step-state/2", step: identity, seen, height, given, sha256 };
    const head = { __metadata__: { [STATE_KEY]: JSON.stringify(record) } };
    let at = 0;
    for (const [name, { shape, data }] of sorted(arrays)) {
      head[name] = { dtype: "F32", shape, data_offsets: [at, at + data.byteLength] };
      at += data.byteLength;
    }
    const json = new TextEncoder().encode(JSON.stringify(head));
    const start = 8 + Math.ceil(json.length / 8) * 8;
    const bytes = new Uint8Array(start + at).fill(32, 8, start);
    new DataView(bytes.buffer).setBigUint64(0, BigInt(start - 8), true);
    bytes.set(json, 8);
    at = start;
    for (const [, { data }] of sorted(arrays)) {
      bytes.set(new Uint8Array(data.buffer), at);
      at += data.byteLength;
    }
    return bytes;
  }

  // Go on from a saved state: the bytes of a safetensors file. What is refused leaves the run as it was.
  async load(bytes) {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const start = 8 + Number(view.getBigUint64(0, true));
    const tensors = JSON.parse(new TextDecoder().decode(bytes.subarray(8, start)));
    const record = JSON.parse(tensors.__metadata__[STATE_KEY]);
    if (record.format !== "tiledse.step-state/2") throw new Error("no state of a step");
    if (record.step !== this.header.identity) throw new Error("the state is of another step");
    if (record.height !== this.height) throw new Error(`the state is of an image of ${record.height} rows`);
    const read = (name) => {
      const { dtype, shape, data_offsets: [low, high] } = tensors[name];
      if (dtype !== "F32") throw new Error(`${name} is ${dtype}, expected F32`);
      return { shape, data: new Float32Array(bytes.slice(start + low, start + high).buffer) };
    };
    const arrays = {};
    const state = {};
    for (const { name, shape } of this.header.states) {
      const { shape: got, data } = (arrays[name] = read(name));
      if (String(got) !== String(shape)) throw new Error(`${name} is of ${got}, expected ${shape}`);
      state[`state.${name}`] = new this.ort.Tensor("float32", data, shape);
    }
    const waiting = (arrays.waiting = read("waiting"));
    if ((await digestOf(record.step, record.seen, sorted(arrays))) !== record.sha256) {
      throw new Error("the state was changed after it was written");
    }
    this.begin();
    const { images, channels, window, width, rows, begin } = this.header;
    this.state = state;
    this.seen = record.seen;
    this.given = record.given;
    this.ended = record.seen === this.height;
    this.next = begin + Math.max(0, Math.floor((this.seen - window - begin) / rows) + 1) * rows;
    const there = waiting.shape[2];
    for (let plane = 0; plane < images * channels; plane++) {
      const part = waiting.data.subarray(plane * there * width, (plane + 1) * there * width);
      if (there) this.window.set(part, (plane * window + this.seen - this.next - there) * width);
    }
  }

  async step(gathered, ended) {
    const { images, channels, window, width, rows, heads } = this.header;
    const whole = (value) => new this.ort.Tensor("int64", BigInt64Array.of(BigInt(value)), [1]);
    const middle = !ended && this.next >= this.header.middle_from + this.header.begin;
    const session = (middle && this.sessions.middle) || this.sessions.step;
    const results = await session.run({
      image: new this.ort.Tensor("float32", this.window, [images, channels, window, width]),
      first: whole(this.next),
      height: whole(ended ? this.seen : this.height ?? UNKNOWN),
      ...this.state,
    });
    for (const name of Object.keys(this.state)) this.state[name] = results[name.replace("state.", "next.")];
    this.next += rows;
    // What the next step is given once more.
    for (let plane = 0; plane < images * channels; plane++) {
      const at = plane * window * width;
      this.window.copyWithin(at, at + Math.min(rows, window) * width, at + window * width);
    }
    const table = results.rows.data;
    let more = false;
    heads.forEach((head, index) => {
      const [low, high, later] = [0, 1, 2].map((column) => Number(table[3 * index + column]));
      more = more || later > 0;
      if (high > low && !this.given[index]) {
        if (head.row_dim === null) this.given[index] = true;
        gathered[index].push(cut(results[head.name], head.row_dim, low, high));
      }
    });
    return more;
  }

  async drain(gathered) {
    const { images, channels, window, width, rows, latency, middle_from } = this.header;
    const most = 2 + Math.ceil(latency / rows) + Math.floor(middle_from / rows);
    for (let number = 0; number < most; number++) {
      const from = Math.min(window, Math.max(0, this.seen - this.next));
      for (let plane = 0; plane < images * channels; plane++) {
        this.window.fill(0, (plane * window + from) * width, (plane + 1) * window * width);
      }
      if (!(await this.step(gathered, true))) {
        this.ended = true;
        return;
      }
    }
    throw new Error("the step does not end; its file was changed, export it again");
  }

  joined(gathered) {
    const found = {};
    this.header.heads.forEach((head, index) => {
      found[head.name] = gathered[index].length ? joined(gathered[index], head.row_dim ?? 0) : null;
    });
    return found;
  }

  checkHeight(height) {
    const { least, multiple, height: made } = this.header;
    if (height < least || height >= UNKNOWN) throw new Error(`an image of ${height} rows cannot go through this step`);
    if (height % multiple) throw new Error(`this network takes heights in multiples of ${multiple}, got ${height}`);
    if (made !== null && made !== height) throw new Error(`the step was made for images of ${made} rows, got ${height}`);
  }
}

// Rows low to high of a tensor along an axis; all of it where there is none. A copy.
function cut(tensor, axis, low, high) {
  const dims = [...tensor.dims];
  if (axis === null) return { data: tensor.data.slice(), dims };
  const inner = count(dims.slice(axis + 1));
  const outer = count(dims.slice(0, axis));
  const part = new Float32Array(outer * (high - low) * inner);
  for (let i = 0; i < outer; i++) {
    const from = (i * dims[axis] + low) * inner;
    part.set(tensor.data.subarray(from, from + (high - low) * inner), i * (high - low) * inner);
  }
  dims[axis] = high - low;
  return { data: part, dims };
}

// Parts one after the other along an axis.
export function joined(parts, axis) {
  if (parts.length === 1) return parts[0];
  const dims = [...parts[0].dims];
  dims[axis] = parts.reduce((sum, part) => sum + part.dims[axis], 0);
  const inner = count(dims.slice(axis + 1));
  const outer = count(dims.slice(0, axis));
  const data = new Float32Array(count(dims));
  for (let i = 0, to = 0; i < outer; i++) {
    for (const part of parts) {
      const size = part.dims[axis] * inner;
      data.set(part.data.subarray(i * size, (i + 1) * size), to);
      to += size;
    }
  }
  return { data, dims };
}
