import type { NumberArray } from "@quad-lora/base";
import {
  encodeFloat16,
  InputError,
  parseSafetensors,
  type SafetensorsTensor,
  toFloat32,
  toTypedArray,
} from "@quad-lora/base";
import { type AdapterInput, concrete } from "./adapter-inputs.ts";

/** What an adapter's codes are tied to: SHA-256 of the quantized graph and of the profile, as a manifest has them. */
export interface BundleIdentity {
  graph: string;
  profile: string;
}

/** Names of the metadata in adapter files. */
export const adapterMetadata = { rank: "quad.rank", graph: "quad.graph", profile: "quad.profile" } as const;

/** An adapter's tensors in the element types of the graph inputs. */
export interface AdapterFile {
  tensors: ReadonlyMap<string, NumberArray>;
  /** Rank of all tensors. */
  rank: number;
  /** Ranks that are more than padding, counted from the first. */
  ownRank: number;
}

/**
 * Reads and checks an adapter for the given graph inputs. Floats become the graph's float type; codes stay as they are.
 *
 * @param inputs - A and B of each slot in turn
 * @throws InputError when tensors are unknown or halved, or shapes, element types or the bundle do not fit
 */
export function readAdapterFile(
  bytes: Uint8Array,
  file: string,
  inputs: readonly AdapterInput[],
  identity: BundleIdentity | undefined,
): AdapterFile {
  const parsed = parseSafetensors(bytes, file);
  if (identity) refuseOtherBundle(parsed.metadata, identity, file);
  const known = new Map(inputs.map((input) => [input.name, input]));
  const tensors = new Map<string, NumberArray>();
  let rank: number | undefined;
  for (const [name, tensor] of parsed.tensors) {
    const input = known.get(name);
    if (!input) {
      throw new InputError({
        what: "the graphs have no such adapter input",
        file,
        where: name,
        fix: "The adapter was prepared for another exposed model: run quad expose with it again.",
      });
    }
    rank ??= tensor.shape[input.rankAxis] ?? 0;
    const expected = concrete(input.shape, rank);
    if (tensor.shape.join() !== expected.join()) {
      throw new InputError({
        what: "the tensor's shape does not fit the graph",
        file,
        where: name,
        expected: `[${expected.join(", ")}]`,
        got: `[${tensor.shape.join(", ")}]`,
      });
    }
    tensors.set(name, convert(tensor, input, file));
  }
  if (!rank) throw new InputError({ what: "the file holds no adapter tensors", file });
  for (let index = 0; index < inputs.length; index += 2) {
    const [a, b] = [inputs[index].name, inputs[index + 1].name];
    if (tensors.has(a) === tensors.has(b)) continue;
    throw new InputError({ what: "one half of a slot is missing", file, where: tensors.has(a) ? b : a });
  }
  if (identity) requireIdentity(parsed.metadata, file);
  const stated = Number(parsed.metadata[adapterMetadata.rank] ?? rank);
  return { tensors, rank, ownRank: Number.isInteger(stated) && stated > 0 && stated < rank ? stated : rank };
}

const codeTypes = { int8: "I8", int16: "I16" } as const;

function convert(tensor: SafetensorsTensor, { type }: AdapterInput, file: string): NumberArray {
  if (type === "int8" || type === "int16") {
    if (tensor.dtype === codeTypes[type]) return toTypedArray(tensor) as Int8Array | Int16Array;
    throw new InputError({
      what: "the graph takes an adapter encoded as integers on its bundle's scales",
      file,
      where: tensor.name,
      expected: codeTypes[type],
      got: tensor.dtype,
      fix: "Encode the LoRA for this bundle: run quad add.",
    });
  }
  if (/^[IU]\d+$/.test(tensor.dtype)) {
    throw new InputError({
      what: "the graph takes an adapter of floats, and this one is encoded for a bundle",
      file,
      where: tensor.name,
      expected: "F32, F16 or BF16",
      got: tensor.dtype,
      fix: "Use it with its bundle, or run quad expose with the original LoRA.",
    });
  }
  const values = toFloat32(tensor, file);
  return type === "float16" ? encodeFloat16(values) : values;
}

function refuseOtherBundle(metadata: Readonly<Record<string, string>>, identity: BundleIdentity, file: string): void {
  for (const [key, what] of [
    ["graph", "the adapter was made for another graph"],
    ["profile", "the adapter was encoded with another quantization profile"],
  ] as const) {
    const got = metadata[adapterMetadata[key]];
    if (got === undefined || got === identity[key]) continue;
    throw new InputError({
      what,
      file,
      where: adapterMetadata[key],
      expected: identity[key],
      got,
      fix: "Encode the original LoRA for this bundle: run quad add.",
    });
  }
}

/** Codes without a bundle's name could stand for anything. */
function requireIdentity(metadata: Readonly<Record<string, string>>, file: string): void {
  for (const key of [adapterMetadata.graph, adapterMetadata.profile]) {
    if (metadata[key] !== undefined) continue;
    throw new InputError({
      what: "the adapter does not say which bundle it was encoded for",
      file,
      where: key,
      fix: "Encode the original LoRA for this bundle: run quad add.",
    });
  }
}
