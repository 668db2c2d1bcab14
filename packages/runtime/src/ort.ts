import { decodeFloat16, encodeFloat16, float32ToFloat16Bits, InputError } from "@quad-lora/base";
import type { InferenceSession, Tensor } from "onnxruntime-common";
import type { FolderFiles } from "./files.ts";

// Everything that is particular to ONNX Runtime's JavaScript packages stays in this file.

/** The parts used of `onnxruntime-node`, `onnxruntime-web/wasm` or `onnxruntime-web/webgpu`. */
export type OrtModule = Pick<typeof import("onnxruntime-common"), "InferenceSession" | "Tensor"> &
  Partial<Pick<typeof import("onnxruntime-common"), "env">>;

/** Tensor contents without a runtime: what low-level calls take and give. */
export interface TensorData {
  type: Tensor.Type;
  dims: readonly number[];
  /** In the type's own typed array: `BigInt64Array` for int64, `Uint16Array` with the raw bits for float16. */
  data: Tensor.DataType;
}

/** A graph input or output. Symbolic dimensions are strings. */
export interface Port {
  name: string;
  type: Tensor.Type;
  shape: readonly (number | string)[];
}

/** Names that exporters give to a model's external data: Optimum, torch's dynamo exporter, older diffusers. */
const externalDataNames = ["model.onnx_data", "model.onnx.data", "weights.pb"];

/** Work that waits for what came before. */
class Queue {
  #last: Promise<unknown> = Promise.resolve();

  inTurn<Result>(work: () => Promise<Result>): Promise<Result> {
    const result = this.#last.then(work);
    this.#last = result.catch(() => undefined);
    return result;
  }
}

const queues = new WeakMap<OrtModule, Queue>();

/**
 * Web sessions share one WebAssembly instance that must not be entered twice: all of a module's work waits in one queue.
 * Native sessions know nothing of each other; there each has a queue, so that it is not freed while it runs.
 */
function queueFor(ort: OrtModule): Queue {
  if (isNative(ort)) return new Queue();
  const queue = queues.get(ort) ?? new Queue();
  queues.set(ort, queue);
  return queue;
}

/** `env` is shared by all packages that are loaded with the same onnxruntime-common: each notes its version there. */
function isNative({ env }: OrtModule): boolean {
  return env?.versions?.node !== undefined && env.versions.web === undefined;
}

/** One graph of a pipeline, opened once. */
export class Component {
  readonly name: string;
  /** For messages. */
  readonly file: string;
  readonly inputs: ReadonlyMap<string, Port>;
  readonly outputs: ReadonlyMap<string, Port>;
  readonly #session: InferenceSession;
  readonly #queue: Queue;
  #released: Promise<void> | undefined;

  private constructor(name: string, file: string, session: InferenceSession, queue: Queue) {
    this.name = name;
    this.file = file;
    this.#session = session;
    this.#queue = queue;
    this.inputs = ports(session.inputMetadata);
    this.outputs = ports(session.outputMetadata);
  }

  /**
   * Opens `NAME/model.onnx`. From a local path ONNX Runtime maps external data itself; from bytes it is handed over.
   *
   * @throws InputError when the graph is missing or ONNX Runtime refuses it
   */
  static async open(
    ort: OrtModule,
    files: FolderFiles,
    name: string,
    options: InferenceSession.SessionOptions = {},
  ): Promise<Component> {
    const path = `${name}/model.onnx`;
    const file = files.describe(path);
    if (!(await files.exists(path))) {
      throw new InputError({
        what: "is missing",
        file,
        fix: "The folder needs the ONNX layout of diffusers or Optimum: a model.onnx in the folder of every component.",
      });
    }
    const local = files.localPath?.(path);
    const bytes = local === undefined ? await files.read(path) : undefined;
    const externalData: { path: string; data: Uint8Array }[] = [];
    if (bytes) {
      for (const external of externalDataNames) {
        if (!(await files.exists(`${name}/${external}`))) continue;
        externalData.push({ path: external, data: await files.read(`${name}/${external}`) });
      }
    }
    const settings = await withExactProducts(ort, options);
    const merged = externalData.length > 0 ? { ...settings, externalData } : settings;
    const queue = queueFor(ort);
    try {
      const session = await queue.inTurn(() =>
        bytes ? ort.InferenceSession.create(bytes, merged) : ort.InferenceSession.create(local!, merged),
      );
      return new Component(name, file, session, queue);
    } catch (error) {
      throw new InputError({ what: "ONNX Runtime cannot open the graph", file, got: oneLine(error) });
    }
  }

  /**
   * Runs the graph once. The outputs belong to the caller.
   *
   * @throws InputError when an input is missing, is unknown, or has a type or shape the graph does not take; after {@link release}
   */
  async run(feeds: Record<string, Tensor>): Promise<Record<string, Tensor>> {
    if (this.#released) throw disposedError(this.file);
    this.#check(feeds);
    return this.#queue.inTurn(() => this.#session.run(feeds));
  }

  /** The input port of one of these names. */
  input(...names: string[]): Port {
    for (const name of names) {
      const port = this.inputs.get(name);
      if (port) return port;
    }
    throw new InputError({
      what: "the graph lacks an input that is needed",
      file: this.file,
      expected: names.join(" or "),
      got: [...this.inputs.keys()].slice(0, 8).join(", "),
    });
  }

  /** Frees the session's memory after the runs under way; the component is unusable from now on. Again, it only waits. */
  release(): Promise<void> {
    return (this.#released ??= this.#queue.inTurn(() => this.#session.release()));
  }

  #check(feeds: Record<string, Tensor>): void {
    for (const name of Object.keys(feeds)) {
      if (!this.inputs.has(name)) {
        throw new InputError({ what: "the graph has no such input", file: this.file, where: name });
      }
    }
    for (const port of this.inputs.values()) {
      const tensor = feeds[port.name];
      if (tensor === undefined) {
        throw new InputError({
          what: "an input of the graph is not given",
          file: this.file,
          where: port.name,
          expected: `${port.type} [${port.shape.join(", ")}]`,
        });
      }
      const fits =
        tensor.type === port.type &&
        tensor.dims.length === port.shape.length &&
        port.shape.every((size, axis) => typeof size === "string" || size === tensor.dims[axis]);
      if (!fits) {
        throw new InputError({
          what: "an input does not fit the graph",
          file: this.file,
          where: port.name,
          expected: `${port.type} [${port.shape.join(", ")}]`,
          got: `${tensor.type} [${tensor.dims.join(", ")}]`,
        });
      }
    }
  }
}

/** One MatMulIntegerToFloat (com.microsoft): uint8 x `[4, 8]` by an int8 constant `[8, 16]` of 127, as an ONNX file in base64. */
const probeModel =
  "CAgSABoAOoECCjYKAXgKAXcKAXMKAXMSAXkaACIUTWF0TXVsSW50ZWdlclRvRmxvYXQ6DWNvbS5taWNyb3NvZnQSAWcqCxABQgFzSgQAAIA/KowBCAgIEBADQgF3SoAB" +
  `${"f39/".repeat(42)}f39aEwoBeBIOCgwIAhIICgIIBAoCCAhiEwoBeRIOCgwIARIICgIIBAoCCBBCBAoAEBFCEQoNY29tLm1pY3Jvc29mdBAB`;

const overflows = new WeakMap<OrtModule, Promise<boolean>>();

/**
 * On x64 processors without VNNI, kernels add products of unsigned and signed bytes in 16 bits, which overflow: half the sum
 * is lost where all codes are large (ONNX Runtime 1.30). A setting makes them use others. On such a processor (Zen 3) these are as
 * fast; where there is VNNI the setting would keep its instructions from being used: so a small product tells whether this
 * processor needs it.
 */
async function withExactProducts(
  ort: OrtModule,
  options: InferenceSession.SessionOptions,
): Promise<InferenceSession.SessionOptions> {
  let overflow = overflows.get(ort);
  // A build without the operator has no kernel of it that could overflow.
  if (!overflow) overflows.set(ort, (overflow = productsOverflow(ort).catch(() => false)));
  if (!(await overflow)) return options;
  const { session, ...extra } = (options.extra ?? {}) as { session?: Record<string, unknown> };
  return { ...options, extra: { ...extra, session: { x64quantprecision: "1", ...session } } };
}

async function productsOverflow(ort: OrtModule): Promise<boolean> {
  const bytes = Uint8Array.from(atob(probeModel), (character) => character.charCodeAt(0));
  const queue = queueFor(ort);
  const session = await queue.inTurn(() => ort.InferenceSession.create(bytes, { logSeverityLevel: 4 }));
  try {
    const x = new ort.Tensor("uint8", new Uint8Array(32).fill(255), [4, 8]);
    const outputs = await queue.inTurn(() => session.run({ x }));
    return (outputs.y!.data as Float32Array)[0] !== 8 * 255 * 127;
  } finally {
    await queue.inTurn(() => session.release());
  }
}

/** What is called on something that was disposed of. @param file - the graph, where one is at hand */
export function disposedError(file?: string): InputError {
  return new InputError({ what: "the pipeline was disposed of", file, fix: "Open it again." });
}

function ports(metadata: readonly InferenceSession.ValueMetadata[]): Map<string, Port> {
  const tensors = metadata.filter((value) => value.isTensor);
  return new Map(tensors.map(({ name, type, shape }) => [name, { name, type, shape }]));
}

/** A tensor over the caller's memory, of any type. */
export function tensorFrom(ort: OrtModule, { type, data, dims }: TensorData): Tensor {
  return new ort.Tensor(type, data as Float32Array, dims);
}

/** The contents of a tensor on the CPU. Newer engines deliver float16 as `Float16Array`; here it is always raw bits. */
export function tensorData({ type, dims, data }: Tensor): TensorData {
  return { type, dims, data: type === "float16" ? float16Bits(data) : data };
}

/** Float contents of a tensor: its own memory for float32, converted for float16. */
export function floatsOf(tensor: Tensor): Float32Array {
  if (tensor.type === "float32") return tensor.data as Float32Array;
  return decodeFloat16(float16Bits(tensor.data));
}

/** A tensor of a float type over the given values: without a copy for float32, rounded for float16. */
export function floatTensor(ort: OrtModule, type: Tensor.Type, values: Float32Array, dims: readonly number[]): Tensor {
  return new ort.Tensor(type as "float32", (type === "float16" ? encodeFloat16(values) : values) as Float32Array, dims);
}

/** A graph input that is written again before every run, without a new allocation. */
export class FloatInput {
  /** Write here, then call {@link commit}. */
  readonly values: Float32Array;
  readonly tensor: Tensor;
  readonly #bits: Uint16Array | undefined;

  constructor(ort: OrtModule, port: Port, dims: readonly number[]) {
    this.values = new Float32Array(dims.reduce((product, size) => product * size, 1));
    this.#bits = port.type === "float16" ? new Uint16Array(this.values.length) : undefined;
    this.tensor = tensorFrom(ort, { type: port.type, data: this.#bits ?? this.values, dims });
  }

  /** Makes the values visible to the tensor, which float16 graphs need. */
  commit(): Tensor {
    if (this.#bits) for (let i = 0; i < this.values.length; i++) this.#bits[i] = float32ToFloat16Bits(this.values[i]);
    return this.tensor;
  }
}

/**
 * The time step input: exporters disagree on int64, int32 or a float type, and on rank 0 or 1.
 * A symbolic first dimension becomes 1, which the graph broadcasts over the batch, or the number of rows.
 */
export class TimestepInput {
  readonly tensor: Tensor;
  readonly #set: (timestep: number) => void;

  constructor(ort: OrtModule, port: Port, rows = 1) {
    const dims = port.shape.map((size) => (typeof size === "number" ? size : rows));
    const length = dims.reduce((product, size) => product * size, 1);
    if (port.type === "int64") {
      const data = new BigInt64Array(length);
      this.#set = (timestep) => data.fill(BigInt(Math.round(timestep)));
      this.tensor = tensorFrom(ort, { type: "int64", data, dims });
    } else if (port.type === "int32") {
      const data = new Int32Array(length);
      this.#set = (timestep) => data.fill(Math.round(timestep));
      this.tensor = tensorFrom(ort, { type: "int32", data, dims });
    } else if (port.type === "float64") {
      const data = new Float64Array(length);
      this.#set = (timestep) => data.fill(timestep);
      this.tensor = tensorFrom(ort, { type: "float64", data, dims });
    } else {
      const input = new FloatInput(ort, port, dims);
      this.#set = (timestep) => {
        input.values.fill(timestep);
        input.commit();
      };
      this.tensor = input.tensor;
    }
  }

  set(timestep: number): void {
    this.#set(timestep);
  }
}

/**
 * A tensor of the input's type: numbers become int64, int32, bool or a float type as the graph wants them.
 *
 * @throws InputError for an input of another type
 */
export function numberTensor(
  ort: OrtModule,
  { name, type }: Port,
  values: ArrayLike<number>,
  dims: readonly number[],
): Tensor {
  if (type === "float32" || type === "float16") return floatTensor(ort, type, Float32Array.from(values), dims);
  if (type === "int64") return tensorFrom(ort, { type, data: BigInt64Array.from(Array.from(values), BigInt), dims });
  const arrays = { int32: Int32Array, float64: Float64Array, bool: Uint8Array };
  const array = arrays[type as keyof typeof arrays];
  if (array) return tensorFrom(ort, { type, data: array.from(values), dims });
  throw new InputError({ what: "an input has an element type that is not supported", where: name, got: type });
}

function float16Bits(data: Tensor.DataType): Uint16Array {
  if (data instanceof Uint16Array) return data;
  const { buffer, byteOffset, length } = data as Exclude<Tensor.DataType, string[]>;
  return new Uint16Array(buffer, byteOffset, length);
}

function oneLine(error: unknown): string {
  return String((error as Error)?.message ?? error).replaceAll(/\s+/g, " ");
}
