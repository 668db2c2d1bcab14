import { InputError } from "@quad-lora/base";
import { Tensor } from "onnxruntime-node";

/** What a metric's network must offer: the part of ONNX Runtime's `InferenceSession` that is used here. */
export interface MetricSession {
  readonly inputNames: readonly string[];
  readonly outputNames: readonly string[];
  /** Types and shapes of the inputs, in the order of `inputNames`; without it inputs are taken to fit. */
  readonly inputMetadata?: readonly InputMetadata[];
  run(feeds: Record<string, Tensor>): Promise<Readonly<Record<string, MetricOutput>>>;
}

/** A tensor that a network returned. */
export interface MetricOutput {
  readonly type: string;
  readonly dims: readonly number[];
  readonly data: unknown;
}

/** What ONNX Runtime tells of one input: `shape` holds names where a dimension is free, and is empty if unknown. */
export interface InputMetadata {
  readonly name: string;
  readonly isTensor: boolean;
  readonly type?: string;
  readonly shape?: readonly (number | string)[];
}

/** Real numbers with their shape, row-major. */
export interface NumericTensor {
  data: Float32Array;
  dims: number[];
}

/**
 * The names of a network's inputs, checked for their number.
 *
 * @throws InputError when the graph has another number of inputs.
 */
export function checkInputCount(session: MetricSession, network: string, count: number): readonly string[] {
  if (session.inputNames.length !== count)
    throw new InputError({
      what: "the graph does not have the inputs this metric feeds",
      where: network,
      expected: count === 1 ? "1 input" : `${count} inputs`,
      got: `${session.inputNames.length} (${session.inputNames.join(", ")})`,
      fix: "Export the network with exactly these inputs.",
    });
  return session.inputNames;
}

/**
 * Checks one input's element type and shape against what will be fed, as far as the graph states them.
 *
 * @param types - ONNX element types the caller can feed.
 * @returns the type to feed: the graph's own, or the first of `types` where it says nothing.
 * @throws InputError when they do not fit.
 */
export function checkInput(
  session: MetricSession,
  network: string,
  name: string,
  types: readonly string[],
  dims: readonly number[],
): string {
  const metadata = session.inputMetadata?.find((entry) => entry.name === name);
  const where = `${network}, input ${name}`;
  if (metadata?.type !== undefined && !types.includes(metadata.type))
    throw new InputError({
      what: "the graph's input has a type this metric does not feed",
      where,
      expected: types.join(" or "),
      got: metadata.type,
      fix: "Export the network with such an input.",
    });
  const shape = metadata?.shape;
  const fits =
    !shape?.length ||
    (shape.length === dims.length &&
      shape.every((size, i) => typeof size !== "number" || size < 0 || size === dims[i]));
  if (!fits)
    throw new InputError({
      what: "the graph's input has another shape than the data",
      where,
      expected: `[${shape.join(", ")}]`,
      got: `[${dims.join(", ")}]`,
      fix: "Pass data of that size, or export the network with free dimensions.",
    });
  return metadata?.type ?? types[0];
}

/**
 * Runs a network and returns one output as 32-bit floats.
 *
 * @param output - the output's name; by default the graph's only or first output.
 * @throws InputError when the output does not exist or is not float32.
 */
export async function runNetwork(
  session: MetricSession,
  network: string,
  feeds: Record<string, Tensor>,
  output: string | undefined = session.outputNames[0],
): Promise<NumericTensor> {
  if (output === undefined || !session.outputNames.includes(output))
    throw new InputError({
      what: "the graph has no such output",
      where: network,
      expected: session.outputNames.join(" or "),
      got: String(output),
    });
  const result = (await session.run(feeds))[output];
  if (!result || !(result.data instanceof Float32Array))
    throw new InputError({
      what: "the network's output is not a float32 tensor",
      where: `${network}, output ${output}`,
      got: result?.type ?? "nothing",
      fix: "Export the network with a float32 output.",
    });
  return { data: result.data, dims: [...result.dims] };
}

/** A float32 tensor to feed. */
export function floatTensor(data: Float32Array, dims: readonly number[]): Tensor {
  return new Tensor("float32", data, dims);
}

/** Token ids as the integer type the graph takes. */
export function tokenTensor(type: string, ids: readonly number[], dims: readonly number[]): Tensor {
  return type === "int32"
    ? new Tensor("int32", Int32Array.from(ids), dims)
    : new Tensor(
        "int64",
        BigInt64Array.from(ids, (id) => BigInt(id)),
        dims,
      );
}
