import { basename } from "node:path";
import { type SafetensorsInput, serializeSafetensors } from "@quad-lora/base";
import { elementCount } from "@quad-lora/onnx";
import {
  type AdapterRecord,
  adapterMetadata,
  type BundleIdentity,
  type OnnxAdapterParameter,
  type SlotsFile,
  type Task,
  writeOnnxAdapter,
} from "@quad-lora/runtime";
import { squaredProductNorm, toRows } from "../alignment/rows.ts";
import { type AdapterFactors, encodeAdapter, factorsOf, type SlotFit } from "../factors/encode-factors.ts";
import { factorMetadata, sourceKey } from "../factors/factor-file.ts";
import { otherFactors } from "../factors/other-factors.ts";
import { factorDims, padRank, slotInputs } from "../factors/slot-layout.ts";
import { hashBytes } from "../files/hash.ts";
import type { Profile } from "../records/profile.ts";
import type { StageOptions } from "../work/progress.ts";

/** An adapter in an exposed graph's layouts, in full precision. */
export interface AdapterTensors {
  /** By graph input, float32. */
  tensors: ReadonlyMap<string, Float32Array>;
  rank: number;
  /** Where it came from, for the record. */
  source: string;
}

/** What every adapter of one bundle is encoded against. */
export interface EncodingFrame {
  /** Of the bundle: the denoiser's slots take integers, those of other components floats. */
  slots: SlotsFile;
  profile: Profile;
  identity: BundleIdentity;
}

/** An adapter as a bundle holds it. */
export interface EncodedFiles {
  /** Contents by file name in `adapters/`, the record not among them. */
  files: Map<string, Uint8Array>;
  record: AdapterRecord;
}

export interface EncodeOptions extends StageOptions {
  /** Use the factors' gauge freedom; factors that were trained on the grid are taken as they are. */
  align: boolean;
  /** For the record. */
  task?: Task;
  /** For the record. */
  withoutSlot?: readonly string[];
}

/** Clipping beyond this share makes it worth trying whether more ranks help. */
const muchClipped = 0.001;

/**
 * Encodes an adapter on a bundle's frozen scales, at its own rank: padding costs time at every step. Where the scales are
 * too small for it, it is spread over the profile's rank if that brings its products nearer by a tenth or more.
 */
export async function encodeForBundle(
  name: string,
  adapter: AdapterTensors,
  frame: EncodingFrame,
  options: EncodeOptions,
): Promise<EncodedFiles> {
  const { slots, profile, identity } = frame;
  let encoded = await encodeDenoiser(name, adapter, frame, adapter.rank, options);
  if (options.align && adapter.rank < profile.rank && encoded.fit.clipped > muchClipped) {
    const padded = await encodeDenoiser(name, adapter, frame, profile.rank, options);
    if (padded.fit.alignmentError < 0.9 * encoded.fit.alignmentError) encoded = padded;
  }
  const { rank, fit } = encoded;
  const tensors = [...encoded.codes, ...otherFactors(slots, profile.component, adapter, rank)];
  const source = basename(adapter.source);
  const metadata = {
    ...factorMetadata(rank),
    [adapterMetadata.graph]: identity.graph,
    [adapterMetadata.profile]: identity.profile,
    [sourceKey]: source,
  };
  const files = new Map<string, Uint8Array>([
    [`${name}.safetensors`, serializeSafetensors(tensors, metadata)],
    [`${name}.onnx_adapter`, writeOnnxAdapter(toOnnxAdapter(tensors, slots, rank, identity))],
  ]);
  const record: AdapterRecord = {
    format: "quad-bundle-adapter",
    version: 2,
    name,
    source,
    ...identity,
    rank,
    slots: tensors.length / 2,
    withoutSlot: [...(options.withoutSlot ?? [])],
    fit,
    ...(options.task ? { task: options.task } : {}),
    files: Object.fromEntries(
      [...files].map(([file, bytes]) => [file, { sha256: hashBytes(bytes), bytes: bytes.byteLength }]),
    ),
  };
  return { files, record };
}

/** Codes for the denoiser's slots, padded to `rank`. */
async function encodeDenoiser(
  name: string,
  { tensors, rank: ownRank }: AdapterTensors,
  { slots, profile }: EncodingFrame,
  rank: number,
  { align, signal, onProgress }: EncodeOptions,
): Promise<{ rank: number; codes: SafetensorsInput[]; fit: AdapterRecord["fit"] }> {
  const denoiser = slots.components[profile.component].slots;
  const factors = factorsOf(tensors, denoiser, ownRank, rank);
  const scales = new Map(Object.entries(profile.slots));
  const codes: SafetensorsInput[] = [];
  const fit: SlotFit[] = [];
  for (const [index, slot] of denoiser.entries()) {
    const encoded = encodeAdapter(factors, [slot], scales, profile.policy.adapterBits, align);
    codes.push(...encoded.codes);
    fit.push(...encoded.fit);
    onProgress?.(`encoding ${name}`, index + 1, denoiser.length);
    // Aligning a slot can take a second: interrupts and progress get through in between.
    await new Promise((resolve) => setImmediate(resolve));
    signal?.throwIfAborted();
  }
  return { rank, codes, fit: summarizeFit(fit, factors) };
}

/** One fit for all slots: errors weighed by the size of what they belong to. */
function summarizeFit(fit: readonly SlotFit[], factors: AdapterFactors): AdapterRecord["fit"] {
  let [signal, noise, before, clipped, values] = [0, 0, 0, 0, 0];
  for (const { slot, error, errorBefore, clippedA, clippedB } of fit) {
    const given = factors.get(slot)!;
    const { a, b } = toRows(given);
    const square = squaredProductNorm(a, b);
    signal += square;
    noise += square * error ** 2;
    before += square * errorBefore ** 2;
    clipped += clippedA * given.A.length + clippedB * given.B.length;
    values += given.A.length + given.B.length;
  }
  const relative = (square: number) => (signal > 0 ? Math.sqrt(square / signal) : 0);
  return {
    productSqnr: noise > 0 ? 10 * Math.log10(signal / noise) : null,
    alignmentError: relative(noise),
    errorBeforeAlignment: relative(before),
    clipped: values > 0 ? clipped / values : 0,
  };
}

/**
 * For ONNX Runtime's own adapter interface: everything that a run needs beyond the model's usual inputs, so strengths of 1,
 * and zeros for slots that the adapter leaves out. At the graph's rank where that is fixed.
 */
function toOnnxAdapter(
  tensors: readonly SafetensorsInput[],
  slots: SlotsFile,
  ownRank: number,
  identity: BundleIdentity,
) {
  const rank = slots.rank.kind === "fixed" ? slots.rank.rank : ownRank;
  const given = new Map(tensors.map((tensor) => [tensor.name, tensor]));
  const parameters: OnnxAdapterParameter[] = [];
  for (const { strengthInput, elementType, slots: list } of Object.values(slots.components)) {
    const ones = new Float32Array(rank).fill(1);
    parameters.push({ name: strengthInput, dataType: "float32", dims: [rank], data: bytesOf(ones) });
    const dataType = elementType ?? "float32";
    const arrays = { float32: Float32Array, int8: Int8Array, int16: Int16Array } as const;
    for (const [name, shape] of slotInputs(list)) {
      const dims = factorDims(shape, rank);
      const values = given.get(name)?.data as Float32Array | Int8Array | Int16Array | undefined;
      const data = values ? padRank(values, shape, ownRank, rank) : new arrays[dataType](elementCount(dims));
      parameters.push({ name, dataType, dims, data: bytesOf(data) });
    }
  }
  // ONNX Runtime's formats have a number for the model: the graph's hash as far as it fits.
  return { adapterVersion: 1, modelVersion: Number.parseInt(identity.graph.slice(0, 7), 16), parameters };
}

function bytesOf({ buffer, byteOffset, byteLength }: ArrayBufferView): Uint8Array {
  return new Uint8Array(buffer, byteOffset, byteLength);
}
