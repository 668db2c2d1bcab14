import { decodeFloat16, encodeFloat16, InputError } from "@quad-lora/base";
import type { TensorData } from "@quad-lora/runtime";
import { axesOf, type DenoiserShape, roleOf, sampleInput, textInput, timestepInput } from "./denoiser.ts";

/** One run of a denoiser: its own inputs by name, adapters' left out, and what it returned, `[batch, ...]`. */
export interface DenoiserCall {
  inputs: Readonly<Record<string, TensorData>>;
  output: TensorData;
}

interface TaskCalls {
  task: string;
  calls: readonly DenoiserCall[];
}

/**
 * The sizes that recorded calls have in common.
 * @throws InputError if there are none, they differ, or an input is missing
 */
export function shapeOf(tasks: readonly TaskCalls[]): DenoiserShape {
  const first = tasks.find(({ calls }) => calls.length > 0)?.calls[0];
  if (!first) {
    throw new InputError({
      what: "no call of the denoiser was recorded",
      where: tasks.map(({ task }) => `task "${task}"`).join(", ") || undefined,
      fix: "Record at least one picture of every task: run quad calibrate again.",
    });
  }
  for (const { task, calls } of tasks) for (const call of calls) refuseOther(task, call, first);
  return shapeOfCall(first);
}

function shapeOfCall({ inputs, output }: DenoiserCall): DenoiserShape {
  const sampleName = sampleInput(Object.keys(inputs));
  const { dims } = inputs[sampleName];
  const axes = axesOf(sampleName, dims.length);
  const along = (axis: (typeof axes)[number]) => {
    const index = axes.indexOf(axis);
    return index < 0 ? {} : { [axis]: dims[index] };
  };
  if (axes.includes("own")) {
    throw new InputError({
      what: "the latents have a layout that no supported model has",
      where: `input "${sampleName}"`,
      expected: "[batch, channels, height, width] or [batch, patches, features]",
      got: `[${dims}]`,
      fix: "Export the model with Optimum.",
    });
  }
  const batch = output.dims[0];
  const others = Object.entries(inputs).filter(([name, tensor]) => axesOf(name, tensor.dims.length).includes("own"));
  return {
    batch,
    ...along("height"),
    ...along("width"),
    ...along("sequence"),
    ...(inputs[textInput] ? { tokens: inputs[textInput].dims[1] } : {}),
    ...(hasRowTimesteps({ inputs, output }) ? { rowTimesteps: true } : {}),
    ...(others.length > 0
      ? { others: Object.fromEntries(others.map(([name, tensor]) => [name, [...tensor.dims]])) }
      : {}),
  };
}

function hasRowTimesteps({ inputs, output }: DenoiserCall): boolean {
  const times = inputs[timestepInput]?.dims;
  return times?.length === 1 && times[0] > 1 && times[0] === output.dims[0];
}

/** Calls of one graph have the same inputs, of the same dimensions. */
function refuseOther(task: string, call: DenoiserCall, first: DenoiserCall): void {
  for (const name of new Set([...Object.keys(first.inputs), ...Object.keys(call.inputs)])) {
    const [expected, got] = [first, call].map(({ inputs }) => inputs[name]?.dims);
    if (expected && got?.join() === expected.join()) continue;
    const where = `task "${task}", input "${name}"`;
    if (!expected || !got) {
      throw new InputError({
        what: "tasks give the denoiser different inputs; one graph has the same for all",
        where,
        fix: "Record all tasks with the same model.",
      });
    }
    throw new InputError({
      what: "tasks draw pictures of different sizes; one graph has one size",
      where,
      expected: `[${expected}]`,
      got: `[${got}]`,
      fix: "Give all tasks the same width and height.",
    });
  }
}

/**
 * Calls of single rows, as tasks without guidance have them, repeated up to the largest batch: a fixed graph has one number of
 * rows.
 */
export function alignBatches<Task extends TaskCalls>(tasks: readonly Task[]): Task[] {
  const all = tasks.flatMap(({ calls }) => calls);
  const batch = Math.max(...all.map(({ output }) => output.dims[0]));
  const largest = all.find(({ output }) => output.dims[0] === batch);
  const rowTimesteps = largest !== undefined && hasRowTimesteps(largest);
  return tasks.map((task) => ({ ...task, calls: task.calls.map((call) => withRows(call, { batch, rowTimesteps })) }));
}

/** A call with its rows repeated up to a batch; itself where it has as many. */
export function withRows<Call extends DenoiserCall>(
  call: Call,
  { batch, rowTimesteps }: Pick<DenoiserShape, "batch" | "rowTimesteps">,
): Call {
  const rows = call.output.dims[0];
  if (rows === batch) return call;
  const indices = Array.from({ length: batch }, (_, index) => index % rows);
  return {
    ...call,
    inputs: pickInputRows(call, indices, rowTimesteps),
    output: pickRows(call.output, indices),
  };
}

/**
 * The inputs of a run over some rows of a call, by index; inputs that all rows share stay as they are.
 * @param rowTimesteps - whether the run has a time step per row even where the call has one for all
 */
export function pickInputRows(
  { inputs, output }: DenoiserCall,
  indices: readonly number[],
  rowTimesteps = false,
): Record<string, TensorData> {
  const rows = output.dims[0];
  return Object.fromEntries(
    Object.entries(inputs).map(([name, tensor]) => {
      const isTime = roleOf(name) === "timestep" && tensor.dims.length === 1;
      if (isTime && (rowTimesteps || (rows > 1 && tensor.dims[0] === rows))) {
        return [name, pickRows(tensor, tensor.dims[0] === rows ? indices : indices.map(() => 0))];
      }
      return [name, hasRows(name, tensor, rows) ? pickRows(tensor, indices) : tensor];
    }),
  );
}

/** Whether the first axis of an input counts the rows of a call. */
export function hasRows(name: string, { dims }: TensorData, rows: number): boolean {
  return axesOf(name, dims.length)[0] === "batch" && dims[0] === rows;
}

/** A tensor's values as float32: its own memory, or decoded from float16. */
export function floatValues({ type, data }: TensorData): Float32Array {
  return type === "float16" ? decodeFloat16(data as Uint16Array) : (data as Float32Array);
}

/** A tensor of a graph's float type over float32 values, rounded for float16. */
export function floatTensor(type: string, dims: readonly number[], values: Float32Array): TensorData {
  return type === "float16"
    ? { type, dims: [...dims], data: encodeFloat16(values) }
    : { type: "float32", dims: [...dims], data: values };
}

/** A tensor as graphs that compute in float32 take it: float16 is widened, everything else is itself. */
export function inFloat32(tensor: TensorData): TensorData {
  return tensor.type === "float16" ? floatTensor("float32", tensor.dims, floatValues(tensor)) : tensor;
}

/** Tensors of one type, one behind the other along the first axis. */
export function joinRows(tensors: readonly TensorData[]): TensorData {
  const [{ type, dims, data: first }] = tensors;
  const length = tensors.reduce((sum, { data }) => sum + data.length, 0);
  const data = new ((first as Float32Array).constructor as Float32ArrayConstructor)(length);
  let at = 0;
  for (const tensor of tensors) {
    data.set(tensor.data as Float32Array, at);
    at += tensor.data.length;
  }
  return {
    type,
    dims: [tensors.reduce((sum, tensor) => sum + tensor.dims[0], 0), ...dims.slice(1)],
    data,
  } as TensorData;
}

/** Slices along the first axis, of whatever element type. */
export function pickRows(tensor: TensorData, indices: readonly number[]): TensorData {
  const [rows, ...rest] = tensor.dims;
  if (indices.length === rows && indices.every((row, index) => row === index)) return tensor;
  const source = tensor.data as Float32Array;
  const size = source.length / rows;
  const data = new (source.constructor as Float32ArrayConstructor)(indices.length * size);
  for (const [index, row] of indices.entries()) data.set(source.subarray(row * size, (row + 1) * size), index * size);
  return { ...tensor, dims: [indices.length, ...rest], data };
}
