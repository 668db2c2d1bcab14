import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { parseSafetensors, toFloat32 } from "@quad-lora/base";
import { createSession, loadModel, type Model, runModel, runSession, Tensor } from "@quad-lora/onnx";
import type { Slot } from "@quad-lora/runtime";
import { beforeAll, describe, expect, test } from "vitest";
import { maxRelative } from "../../../../test/helpers/models.ts";
import { importAdapter } from "../adapters/import.ts";
import type { ImportedAdapter } from "../adapters/types.ts";
import { bindAdapter } from "../factors/bind-adapter.ts";
import { findLayers } from "../layers/find-layers.ts";
import { toModule } from "./expose.ts";
import { exposeGraph, type SlotRank } from "./expose-graph.ts";

// PyTorch with the adapters applied by diffusers (see test/reference): what the exposed graph has to give.
const root = fileURLToPath(new URL("../../../../", import.meta.url));
const reference = parseSafetensors(readFileSync(`${root}test/reference/pocket/unet.safetensors`), "unet").tensors;
const expectedOf = (name: string) => toFloat32(reference.get(`out.${name}`)!);
const unet = () => loadModel(`${root}models/pocket/unet/model.onnx`);

const input = (name: string) => {
  const tensor = reference.get(name)!;
  const type = tensor.dtype === "I64" ? "int64" : "float32";
  return new Tensor(type, tensor.shape, { byteLength: tensor.bytes.length, read: () => tensor.bytes });
};
const inputs = Object.fromEntries(["sample", "timestep", "encoder_hidden_states"].map((name) => [name, input(name)]));

const adapters: Record<string, ImportedAdapter> = {};
let base: Float32Array;
beforeAll(async () => {
  const modules = findLayers(unet()).layers.map((layer) => toModule("unet", layer));
  for (const [name, file] of [
    ["flat", "flat.safetensors"],
    ["sketch", "sketch"],
    ["erase", "erase.safetensors"],
  ]) {
    adapters[name] = await importAdapter(`${root}models/pocket/adapters/${file}`, modules, { name });
  }
  base = (await runModel(unet(), inputs)).get("out_sample")!.toFloat32();
});

test("every key of every pocket adapter fits a layer", () => {
  for (const { name, report, layers } of Object.values(adapters)) {
    expect([report.unmatched, report.mismatched], name).toEqual([[], []]);
    expect(layers.length).toBeGreaterThan(20);
  }
  expect(adapters.flat.layers.some(({ module }) => /conv\d$|conv_in|conv_out/.test(module))).toBe(true);
});

/** Adapter inputs for members `[adapter, strength]` side by side along the rank, filled up with zeros to `width`. */
function bind(slots: readonly Slot[], strengthInput: string, members: [ImportedAdapter, number][], width?: number) {
  const bound = members.map(([adapter]) => bindAdapter(adapter.layers, { unet: { slots } }));
  const rank = width ?? bound.reduce((sum, member) => sum + member.rank, 0);
  const feeds: Record<string, Tensor> = {};
  for (const slot of slots) {
    for (const [name, shape] of [
      [slot.inputA, slot.shapeA],
      [slot.inputB, slot.shapeB],
    ] as const) {
      const axis = shape.indexOf("rank");
      const outer = shape.slice(0, axis).reduce<number>((product, size) => product * Number(size), 1);
      const inner = shape.slice(axis + 1).reduce<number>((product, size) => product * Number(size), 1);
      const values = new Float32Array(outer * rank * inner);
      let start = 0;
      for (const member of bound) {
        const part = member.tensors.find((tensor) => tensor.name === name)?.data as Float32Array | undefined;
        const size = member.rank * inner;
        for (let row = 0; part && row < outer; row++) {
          values.set(part.subarray(row * size, (row + 1) * size), (row * rank + start) * inner);
        }
        start += member.rank;
      }
      feeds[name] = Tensor.float32(
        shape.map((size) => (size === "rank" ? rank : size)),
        values,
      );
    }
  }
  const strengths = members.flatMap(([, strength], index) => new Array<number>(bound[index].rank).fill(strength));
  // What stands where nothing is bound must not matter.
  feeds[strengthInput] = Tensor.float32(
    [rank],
    Float32Array.from({ length: rank }, (_, i) => strengths[i] ?? 1),
  );
  return feeds;
}

describe.each<[string, SlotRank]>([
  ["dynamic", { kind: "dynamic" }],
  ["16", { kind: "fixed", rank: 16 }],
  ["32", { kind: "fixed", rank: 32 }],
])("rank %s", (_, rank) => {
  const model: Model = unet();
  const { slots, strengthInput } = exposeGraph(model, "unet", findLayers(model).layers, rank);
  const width = rank.kind === "fixed" ? rank.rank : undefined;
  let session: Awaited<ReturnType<typeof createSession>>;
  const run = async (members: [ImportedAdapter, number][]) => {
    const outputs = await runSession(session, { ...inputs, ...bind(slots, strengthInput, members, width) });
    expect([...outputs.keys()]).toEqual(["out_sample"]);
    return outputs.get("out_sample")!.toFloat32();
  };
  beforeAll(async () => {
    session = await createSession(model);
  });

  test.each(["flat", "sketch", "erase"])("%s bound gives the merged model", async (name) => {
    expect(maxRelative(await run([[adapters[name], 1]]), expectedOf(name))).toBeLessThan(1e-4);
    expect(maxRelative(expectedOf(name), expectedOf("base"))).toBeGreaterThan(0.01);
  });

  test("a negative strength", async () => {
    expect(maxRelative(await run([[adapters.flat, -0.4]]), expectedOf("flat@-0.4"))).toBeLessThan(1e-4);
  });

  test("unbound it is the base model", async () => {
    const unbound = await run([]);
    expect(maxRelative(unbound, expectedOf("base"))).toBeLessThan(1e-5);
    expect(maxRelative(unbound, base)).toBeLessThan(1e-5);
  });

  test.runIf(width !== 16)("a blend", async () => {
    const blend = await run([
      [adapters.flat, 0.7],
      [adapters.sketch, 0.5],
    ]);
    expect(maxRelative(blend, expectedOf("flat@0.7+sketch@0.5"))).toBeLessThan(1e-4);
  });
});

test("the interface of the original stays: inputs first, the same outputs", () => {
  const model = unet();
  exposeGraph(model, "unet", findLayers(model).layers, { kind: "dynamic" });
  const original = unet();
  expect(model.graph.inputs.slice(0, 3).map(({ name, type }) => [name, type])).toEqual(
    original.graph.inputs.map(({ name, type }) => [name, type]),
  );
  expect(model.graph.outputs.map(({ name }) => name)).toEqual(original.graph.outputs.map(({ name }) => name));
  expect(() => exposeGraph(model, "unet", findLayers(model).layers, { kind: "dynamic" })).toThrow(/already/);
});
