import { decodeFloat16, encodeFloat16, InputError } from "@quad-lora/base";
import { deadCodeElimination, type Model, runPasses, type Value } from "@quad-lora/onnx";
import type { TensorData } from "@quad-lora/runtime";
import { timestepInput } from "./denoiser.ts";

/** A graph's input for time steps. */
export interface TimestepPort {
  /** float32, float64, float16, int64 or int32. */
  type: string;
  /** `[]`, `[1]`, or `[batch]` where every row has a time step of its own. */
  dims: readonly number[];
}

/**
 * Time steps in the graph's type; integers are rounded.
 * @param times - one per element, or one for all
 * @throws InputError for a type that no exporter gives time steps
 */
export function timestepTensor({ type, dims }: TimestepPort, times: ArrayLike<number>): TensorData {
  const count = dims.reduce((product, length) => product * length, 1);
  const values = Float64Array.from({ length: count }, (_, index) => times[times.length === 1 ? 0 : index]);
  const data = timestepData(type, values);
  if (data) return { type: type as TensorData["type"], dims: [...dims], data };
  throw new InputError({
    what: "time steps cannot be of this type",
    where: `input "${timestepInput}"`,
    expected: "float32, float64, float16, int64 or int32",
    got: type,
    fix: "Export the model with another type of time step.",
  });
}

function timestepData(type: string, times: Float64Array): TensorData["data"] | null {
  switch (type) {
    case "float32":
      return Float32Array.from(times);
    case "float64":
      return times;
    case "float16":
      return encodeFloat16(Float32Array.from(times));
    case "int64":
      return BigInt64Array.from(times, (time) => BigInt(Math.round(time)));
    case "int32":
      return Int32Array.from(times, Math.round);
    default:
      return null;
  }
}

/** The numbers in a tensor of time steps, whatever its type. */
export function readTimesteps({ type, data }: TensorData): number[] {
  if (type === "float16") return [...decodeFloat16(data as Uint16Array)];
  return Array.from(data as ArrayLike<number | bigint>, Number);
}

/** The graph's input for time steps; undefined where it has none. */
export function timestepValue({ graph }: Model): Value | undefined {
  return graph.inputs.find(({ name }) => name === timestepInput);
}

const movements = new Set(["Unsqueeze", "Squeeze", "Reshape", "Cast", "Identity", "Expand"]);

/**
 * Exporters give the UNet one time step for the whole batch and expand it to the rows; training wants one per row. Where the
 * graph expands, an input of that size takes over. Where it does not (a batch of one row, or time embeddings that are
 * broadcast later) the graph keeps its own input. Edits `model` in place.
 * @param model - of concrete shapes
 * @returns how the graph takes time steps afterwards; null where it takes none
 */
export async function perRowTimesteps(model: Model, batch: number): Promise<TimestepPort | null> {
  const input = timestepValue(model);
  if (!input) return null;
  const rows = await expandedInput(model, input, batch);
  return { type: rows.dataType!, dims: rows.concreteShape! };
}

async function expandedInput(model: Model, timestep: Value, batch: number): Promise<Value> {
  const { graph } = model;
  if (timestep.concreteShape?.[0] === batch) return timestep;
  for (let value = timestep; ; ) {
    const [reader, ...others] = value.uses;
    if (!reader || others.length > 0 || !movements.has(reader.node.opType)) return timestep;
    value = reader.node.output();
    if (value.concreteShape?.length !== 1 || value.concreteShape[0] !== batch || !value.dataType) continue;
    timestep.name = graph.claimName(`${timestepInput}.scalar`);
    const rows = graph.addInput("training.timesteps", value.dataType, [batch]);
    graph.replace(value, rows);
    await runPasses(model, [deadCodeElimination]);
    if (graph.inputs.includes(timestep)) graph.inputs.splice(graph.inputs.indexOf(timestep), 1);
    rows.name = timestepInput;
    return rows;
  }
}
