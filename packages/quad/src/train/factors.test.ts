import { fileURLToPath } from "node:url";
import { InputError } from "@quad-lora/base";
import { type Graph, loadModel, type PackedParameter } from "@quad-lora/onnx";
import { SeededRandom, type Slot } from "@quad-lora/runtime";
import { describe, expect, test } from "vitest";
import { exposeGraph } from "../expose/expose-graph.ts";
import { bindAdapter } from "../factors/bind-adapter.ts";
import { findLayers } from "../layers/find-layers.ts";
import { adapterLayers, chooseLayers, continueAdapter, initialFactors } from "./factors.ts";

const unet = () => loadModel(fileURLToPath(new URL("../../../../models/pocket/unet/model.onnx", import.meta.url)));
const { layers } = findLayers(unet());
const names = (choice: string) => chooseLayers(layers, choice).map(({ name }) => name);

describe("choosing layers", () => {
  test("groups do not overlap and together with the rest are all", () => {
    const groups = ["attention", "feed-forward", "convolutions"].map(names);
    const joined = groups.flat();
    expect(new Set(joined).size).toBe(joined.length);
    expect(names("attention,feed-forward,convolutions").sort()).toEqual([...joined].sort());
    expect(names("all")).toHaveLength(layers.length);
    expect(groups[0]).toContain("mid_block.attentions.0.transformer_blocks.0.attn2.to_k");
    expect(groups[0]).toContain("mid_block.attentions.0.proj_in");
    expect(groups[1].every((name) => name.includes(".ff."))).toBe(true);
    expect(groups[2]).toContain("conv_in");
    expect(
      names("all")
        .filter((name) => !joined.includes(name))
        .some((name) => name.includes("time_emb")),
    ).toBe(true);
  });

  test("regular expressions, and what matches nothing", () => {
    expect(names("attn2\\.to_[kv]$").every((name) => /attn2\.to_[kv]$/.test(name))).toBe(true);
    expect(() => chooseLayers(layers, "nothing_like_this")).toThrow(InputError);
    expect(() => chooseLayers(layers, "(")).toThrow(/is not a regular expression/);
  });
});

/** Slots of some linear layers and convolutions, and a layout with their inputs packed one behind the other. */
function packed(rank: number): { slots: Slot[]; layout: PackedParameter[]; size: number } {
  const model = unet();
  const chosen = chooseLayers(findLayers(model).layers, "conv_in|mid_block.*(attn1|conv1)");
  const { slots } = exposeGraph(model, "unet", chosen, { kind: "fixed", rank });
  const graph: Graph = model.graph;
  let size = 0;
  const layout = slots
    .flatMap(({ inputA, inputB }) => [inputA, inputB])
    .map((name) => {
      const type = graph.inputs.find((input) => input.name === name)!.type;
      const dims = (type?.kind === "tensor" ? type.shape : []) as number[];
      const place = { name, offset: size, dims };
      size += dims.reduce((a, b) => a * b, 1);
      return place;
    });
  return { slots, layout, size };
}

test("what goes into a file comes back into the graph's inputs", () => {
  const { slots, layout, size } = packed(3);
  const random = new SeededRandom(1);
  const values = Float32Array.from({ length: size }, () => random.normal());
  const bound = bindAdapter(adapterLayers("unet", slots, layout, values, 0.5), { unet: { slots } });
  expect(bound.rank).toBe(3);
  expect(bound.tensors).toHaveLength(layout.length);
  for (const { name, offset, dims } of layout) {
    const tensor = bound.tensors.find((candidate) => candidate.name === name)!;
    expect(tensor.shape).toEqual(dims);
    const scale = name.endsWith("lora_B") ? 0.5 : 1;
    const expected = values.slice(offset, offset + (tensor.data as Float32Array).length).map((value) => value * scale);
    expect(tensor.data).toEqual(expected);
  }
});

test("training starts at the base: B is zero, A uniform within one over the root of its inputs", () => {
  const { slots, layout, size } = packed(16);
  const values = initialFactors(layout, slots, 7);
  expect(values).toHaveLength(size);
  expect(initialFactors(layout, slots, 7)).toEqual(values);
  for (const slot of slots) {
    const [a, b] = [slot.inputA, slot.inputB].map((name) => {
      const { offset, dims } = layout.find((place) => place.name === name)!;
      return values.slice(offset, offset + dims.reduce((x, y) => x * y, 1));
    });
    expect(b.every((value) => value === 0)).toBe(true);
    const fanIn = a.length / 16;
    const bound = 1 / Math.sqrt(fanIn);
    const variance = a.reduce((sum, value) => sum + value * value, 0) / a.length;
    expect(Math.max(...a.map(Math.abs))).toBeLessThanOrEqual(bound);
    // A uniform distribution's variance is a third of its bound's square.
    expect(variance / ((bound * bound) / 3)).toBeCloseTo(1, 0);
  }
});

describe("going on from an adapter", () => {
  const small = packed(2);
  const random = new SeededRandom(5);
  const trained = Float32Array.from({ length: small.size }, () => random.normal());
  const adapter = adapterLayers("unet", small.slots, small.layout, trained, 0.5);

  test("starts at its change of the base, also at a larger rank and another scale", () => {
    const large = packed(3);
    const start = initialFactors(large.layout, large.slots, 1);
    const own = start.slice();
    continueAdapter(start, large.layout, large.slots, adapter, 2);
    const changes = adapterLayers("unet", large.slots, large.layout, start, 2);
    for (const [index, { rank, up, down }] of changes.entries()) {
      expect(rank).toBe(3);
      const [inputs, outputs] = [down.length / 3, up.length / 3];
      expect(down.slice(0, 2 * inputs)).toEqual(adapter[index].down);
      for (let output = 0; output < outputs; output++) {
        const row = [...up.subarray(3 * output, 3 * output + 3)];
        expect(row).toEqual([...adapter[index].up.subarray(2 * output, 2 * output + 2), 0]);
      }
    }
    // The rank that the adapter lacks keeps its random start, or it could not learn.
    const fresh = adapterLayers("unet", large.slots, large.layout, own, 2);
    expect(changes[0].down.slice(2 * (changes[0].down.length / 3))).toEqual(
      fresh[0].down.slice(2 * (fresh[0].down.length / 3)),
    );
  });

  test("a larger rank than what is trained is refused", () => {
    const one = packed(1);
    const start = initialFactors(one.layout, one.slots, 1);
    expect(() => continueAdapter(start, one.layout, one.slots, adapter, 1)).toThrow(/larger rank .* Use --rank 2/);
  });
});
