/** Fixtures of the compiler's tests: a denoiser with ranges seen on a few inputs, that of the pocket model or of another family. */
import { join } from "node:path";
import { cloneModel, createSession, fromOrt, loadModel, type Model, runSession, Tensor, toOrt } from "@quad-lora/onnx";
import type { SlotsFile } from "@quad-lora/runtime";
import type * as ort from "onnxruntime-node";
import { exposedPocket } from "../../../../test/helpers/exposed-pocket.ts";
import { randomTensor } from "../../../../test/helpers/models.ts";
import { type EncodedAdapter, encodeAdapter, type SlotScales } from "../factors/encode-factors.ts";
import { loadFactors } from "../factors/load-factors.ts";
import { simulationSettings } from "../model/open-with-graph.ts";
import { readSlots } from "../model/slots.ts";
import type { QuantizationPoint } from "../quantizable/points.ts";
import { prepareGraph } from "../quantizable/prepare-graph.ts";
import { type Encoding, encodingFromRange, encodingRange } from "../quantization/index.ts";
import { buildSimulation, encodingInputs } from "../simulate/simulation-graph.ts";
import { strictestTarget, type TargetName, targetNamed } from "../targets/index.ts";
import { buildQuantizedGraph, type QuantizedGraphOptions } from "./quantized-graph.ts";

export const shape = { batch: 2, height: 16, width: 16, tokens: 16 };
export const adapters = ["flat", "sketch", "erase"];
/** Rank that all adapters are padded to. */
export const rank = 16;

export interface Bench {
  prepared: Model;
  slots: SlotsFile["components"][string];
  /** Rank of graphs that have a fixed one. */
  rank: number;
  adapterBits: 8 | 16;
  scales: Map<string, SlotScales>;
  encoded: Map<string, EncodedAdapter>;
  /** Least and greatest value of every activation over all adapters. */
  ranges: Map<string, { min: number; max: number }>;
}

export async function pocketBench(): Promise<Bench> {
  const folder = await exposedPocket();
  const { components } = await readSlots(folder);
  const slots = components.unet;
  const prepared = await prepareGraph(loadModel(join(folder, "unet/model.onnx")), slots, shape);
  return observedBench(folder, prepared, slots, rank, [1, 2].map(callInputs));
}

/**
 * A bench with the ranges that calls have without an adapter and with each of them.
 * @param folder - exposed folder with the adapters
 */
export async function observedBench(
  folder: string,
  prepared: Model,
  slots: Bench["slots"],
  fixedRank: number,
  calls: readonly Record<string, Tensor>[],
  names: readonly string[] = adapters,
): Promise<Bench> {
  const encoded = await encodeAdapters(folder, slots, 8, names);
  const bench: Bench = { prepared, slots, rank: fixedRank, ...encoded, ranges: new Map() };
  await observe(bench, calls);
  return bench;
}

/** The same bench with adapters of 16 bits. */
export async function withWideAdapters(bench: Bench): Promise<Bench> {
  return { ...bench, ...(await encodeAdapters(await exposedPocket(), bench.slots, 16)) };
}

async function encodeAdapters(
  folder: string,
  slots: Bench["slots"],
  adapterBits: 8 | 16,
  names: readonly string[] = adapters,
): Promise<Pick<Bench, "adapterBits" | "scales" | "encoded">> {
  const { factors } = await loadFactors(folder, slots, names);
  const scales = new Map<string, SlotScales>();
  for (const { name } of slots.slots) {
    const present = [...factors.values()].map((adapter) => adapter.get(name)).filter((found) => found !== undefined);
    const step = (pick: (found: (typeof present)[number]) => Float32Array) =>
      Math.max(...present.flatMap((found) => pick(found).reduce((peak, x) => Math.max(peak, Math.abs(x)), 1e-6))) /
      (2 ** (adapterBits - 1) - 1);
    scales.set(name, { a: step(({ A }) => A), b: step(({ B }) => B) });
  }
  const encoded = new Map(
    [...factors].map(([name, given]) => [name, encodeAdapter(given, slots.slots, scales, adapterBits, false)]),
  );
  return { adapterBits, scales, encoded };
}

/** Inputs of one call of the denoiser, adapters excepted. */
export function callInputs(seed: number): Record<string, Tensor> {
  return {
    sample: randomTensor([shape.batch, 9, shape.height, shape.width], seed),
    timestep: Tensor.int64([], [100 + 250 * seed]),
    encoder_hidden_states: randomTensor([shape.batch, shape.tokens, 96], seed + 100),
  };
}

/** An adapter's inputs, or those of the base: at rank 0, or zeros of a fixed rank. */
export function adapterFeeds(
  { slots, encoded, adapterBits }: Bench,
  name: string | null,
  form: "codes" | "values",
  baseRank = 0,
): Record<string, Tensor> {
  const adapter = name === null ? undefined : encoded.get(name)!;
  const size = adapter?.rank ?? baseRank;
  const feeds: Record<string, Tensor> = {
    [slots.strengthInput]: Tensor.float32([size], new Float32Array(size).fill(1)),
  };
  const given = new Map(adapter?.[form].map((tensor) => [tensor.name, tensor]));
  for (const { inputA, shapeA, inputB, shapeB } of slots.slots) {
    for (const [input, symbolic] of [
      [inputA, shapeA],
      [inputB, shapeB],
    ] as const) {
      const dims = symbolic.map((dim) => (dim === "rank" ? size : dim));
      const count = dims.reduce((product, dim) => product * dim, 1);
      const data = given.get(input)?.data;
      if (form === "values") feeds[input] = Tensor.float32(dims, (data as Float32Array) ?? new Float32Array(count));
      else if (adapterBits === 8) {
        feeds[input] = Tensor.of("int8", dims, (data as Int8Array<ArrayBuffer>) ?? new Int8Array(count));
      } else feeds[input] = Tensor.of("int16", dims, (data as Int16Array<ArrayBuffer>) ?? new Int16Array(count));
    }
  }
  return feeds;
}

async function observe(bench: Bench, calls: readonly Record<string, Tensor>[]): Promise<void> {
  const { prepared, slots, ranges } = bench;
  const placement = strictestTarget;
  const { points } = buildSimulation(prepared, slots, { placement, weightBits: 8, weightMethod: "min-max" });
  const model = cloneModel(prepared);
  const values = model.graph.valuesByName();
  const names = [...new Set(points.map(({ observed }) => observed))];
  const inputs = new Set(model.graph.inputs.map(({ name }) => name));
  model.graph.outputs.length = 0;
  for (const name of names) if (!inputs.has(name)) model.graph.outputs.push(values.get(name)!);
  const session = await createSession(model);
  try {
    for (const adapter of [null, ...bench.encoded.keys()]) {
      for (const call of calls) {
        const feeds: Record<string, Tensor> = { ...call, ...adapterFeeds(bench, adapter, "values") };
        const outputs = await runSession(session, feeds);
        for (const name of names) {
          const tensor = outputs.get(name) ?? feeds[name];
          const range = ranges.get(name) ?? { min: 0, max: 0 };
          for (const value of tensor.toFloat32()) {
            if (value < range.min) range.min = value;
            if (value > range.max) range.max = value;
          }
          ranges.set(name, range);
        }
      }
    }
  } finally {
    await session.release();
  }
}

/**
 * Encodings of all points from the ranges seen; 8 bits for the inputs of narrow layers. The others reach twice as far:
 * rounded weights move activations beyond what was seen, and there the simulation would clip what a float keeps.
 */
export function encodingsFor(
  { ranges }: Bench,
  points: readonly QuantizationPoint[],
  narrow: ReadonlySet<string>,
): Map<string, Encoding> {
  return new Map(
    points.map((point) => {
      const { min, max } = ranges.get(point.observed)!;
      const bits = point.layer !== undefined && narrow.has(point.layer) ? 8 : 16;
      const reach = bits === 16 ? 2 : 1;
      return [point.name, encodingFromRange(reach * min, reach * max, { bits, signed: false, symmetric: false })];
    }),
  );
}

export interface Variant {
  placement: TargetName;
  weightBits: 4 | 8;
  /** Which layers are narrow. */
  narrow: (layer: string, index: number) => boolean;
}

/** The simulation of a variant and its compiled graph. */
export async function buildBoth(bench: Bench, { placement, weightBits, narrow }: Variant) {
  const { prepared, slots, scales, adapterBits, rank: fixedRank } = bench;
  const weightMethod = "min-max";
  const simulation = buildSimulation(prepared, slots, { placement, weightBits, weightMethod });
  const narrowLayers = new Set(simulation.layers.map(({ name }) => name).filter(narrow));
  const encodings = encodingsFor(bench, simulation.points, narrowLayers);
  const target = targetNamed(placement);
  const options: QuantizedGraphOptions = {
    points: encodings,
    slots: scales,
    adapterBits,
    weightBits,
    weightMethod,
    narrowLayers,
    target,
    rank: target.hasFixedRank ? fixedRank : null,
  };
  const compiled = await buildQuantizedGraph(prepared, slots, options);
  return { simulation, compiled, encodings, narrowLayers, options };
}

/** Inputs of the simulation for these encodings. */
export function encodingFeeds(encodings: ReadonlyMap<string, Encoding>): Record<string, Tensor> {
  const list = [...encodings.values()];
  const vector = (pick: (encoding: Encoding) => number) => Tensor.float32([list.length], Float32Array.from(list, pick));
  return {
    [encodingInputs.scale]: vector(({ scale }) => scale[0]),
    [encodingInputs.low]: vector((encoding) => encodingRange(encoding).min),
    [encodingInputs.high]: vector((encoding) => encodingRange(encoding).max),
  };
}

/**
 * Settings under which integer products are exact on every processor, as @quad-lora/runtime opens graphs: x64 processors without
 * VNNI otherwise add products of bytes in 16 bits, which overflow.
 */
export const exactProducts = { logSeverityLevel: 3 as const, extra: { session: { x64quantprecision: "1" } } };

/** A session that runs Q/DQ pairs as they are written, and products of integers exactly. */
export function openAsWritten(model: Model): Promise<ort.InferenceSession> {
  const session = { ...simulationSettings.extra.session, ...exactProducts.extra.session };
  return createSession(model, { ...simulationSettings, extra: { session } });
}

export async function output(session: ort.InferenceSession, feeds: Record<string, Tensor>): Promise<Float32Array> {
  const outputs = await session.run(Object.fromEntries(Object.entries(feeds).map(([k, v]) => [k, toOrt(v)])));
  return fromOrt(Object.values(outputs)[0]).toFloat32();
}
