import { InputError, type SafetensorsInput, serializeSafetensors } from "@quad-lora/base";
import fc from "fast-check";
import type { Tensor } from "onnxruntime-common";
import * as ort from "onnxruntime-node";
import { describe, expect, test } from "vitest";
import { AdapterBank, type AdapterFeeds } from "./adapters.ts";
import type { SlotsFile } from "./configs.ts";
import type { Port } from "./ort.ts";

const [inFeatures, outFeatures] = [3, 2];
const kernel = [2, 2] as const;

function slotsOf(rank: SlotsFile["rank"]): SlotsFile {
  const features = { inFeatures, outFeatures };
  return {
    format: "quad-slots",
    version: 1,
    rank,
    components: {
      unet: {
        strengthInput: "strength",
        slots: [
          {
            ...features,
            name: "linear",
            kind: "matmul",
            inputA: "linear.A",
            shapeA: [inFeatures, "rank"],
            inputB: "linear.B",
            shapeB: ["rank", outFeatures],
          },
          {
            ...features,
            name: "conv",
            kind: "conv",
            kernel: [...kernel],
            inputA: "conv.A",
            shapeA: ["rank", inFeatures, ...kernel],
            inputB: "conv.B",
            shapeB: [outFeatures, "rank", 1, 1],
          },
        ],
      },
    },
  };
}

function bankOf(rank: SlotsFile["rank"], type: Tensor.Type = "float32"): AdapterBank {
  const input = (name: string): Port => ({ name, type, shape: [] });
  return new AdapterBank(ort, slotsOf(rank), new Map([["unet", { input }]]), "slots.json");
}

/** An adapter of seeded small whole numbers, which sums and products keep exact even in float16. */
function adapterBytes(rank: number, seed: number, keep = (_name: string) => true, ownRank?: number): Uint8Array {
  let state = seed;
  const tensor = (name: string, shape: number[]): SafetensorsInput => {
    const data = Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => {
      state = (state * 1103515245 + 12345) % 2147483648;
      return (state % 7) - 3;
    });
    return { name, dtype: "F32", shape, data };
  };
  const tensors = [
    tensor("linear.A", [inFeatures, rank]),
    tensor("linear.B", [rank, outFeatures]),
    tensor("conv.A", [rank, inFeatures, ...kernel]),
    tensor("conv.B", [outFeatures, rank, 1, 1]),
  ];
  return serializeSafetensors(
    tensors.filter(({ name }) => keep(name)),
    { "quad.rank": String(ownRank ?? rank) },
  );
}

function values(feeds: AdapterFeeds, name: string): { data: number[]; dims: readonly number[] } {
  const tensor = feeds.get("unet")![name];
  return { data: [...(tensor.data as Float32Array)], dims: tensor.dims };
}

/** The weight change that the feeds amount to, `sum_r A[:, r] strength[r] B[r, :]`: both layers' results in one list. */
function change(feeds: AdapterFeeds): number[] {
  const strength = values(feeds, "strength").data;
  const rank = strength.length;
  const result: number[] = [];
  const [linearA, linearB] = [values(feeds, "linear.A"), values(feeds, "linear.B")];
  expect([linearA.dims, linearB.dims]).toEqual([
    [inFeatures, rank],
    [rank, outFeatures],
  ]);
  for (let i = 0; i < inFeatures; i++) {
    for (let o = 0; o < outFeatures; o++) {
      let sum = 0;
      for (let r = 0; r < rank; r++)
        sum += linearA.data[i * rank + r] * strength[r] * linearB.data[r * outFeatures + o];
      result.push(sum);
    }
  }
  const [convA, convB] = [values(feeds, "conv.A"), values(feeds, "conv.B")];
  expect([convA.dims, convB.dims]).toEqual([
    [rank, inFeatures, ...kernel],
    [outFeatures, rank, 1, 1],
  ]);
  const taps = inFeatures * kernel[0] * kernel[1];
  for (let o = 0; o < outFeatures; o++) {
    for (let tap = 0; tap < taps; tap++) {
      let sum = 0;
      for (let r = 0; r < rank; r++) sum += convA.data[r * taps + tap] * strength[r] * convB.data[o * rank + r];
      result.push(sum);
    }
  }
  return result;
}

const quarter = fc.integer({ min: -8, max: 8 }).map((quarters) => quarters / 4);
const ranks = [
  ["dynamic rank", { kind: "dynamic" }],
  ["fixed rank", { kind: "fixed", rank: 12 }],
] as const;

describe.each(ranks)("%s", (_, rank) => {
  test("a blend is the sum of its members", () => {
    const bank = bankOf(rank);
    bank.add("a", adapterBytes(2, 1), "a");
    bank.add("b", adapterBytes(3, 2), "b");
    bank.add(
      "c",
      adapterBytes(5, 3, (name) => name.startsWith("conv"), 4),
      "c",
    );
    const alone = (name: string) => change(bank.select(new Map([[name, 1]])));
    const [a, b] = [alone("a"), alone("b")];
    fc.assert(
      fc.property(quarter, quarter, (s, t) => {
        const blend = change(
          bank.select(
            new Map([
              ["b", t],
              ["a", s],
            ]),
          ),
        );
        expect(blend).toEqual(a.map((value, index) => s * value + t * b[index] + 0));
      }),
    );
  });

  test("nothing selected, and strength 0, change nothing", () => {
    const bank = bankOf(rank);
    bank.add("a", adapterBytes(2, 1), "a");
    for (const selection of [new Map(), new Map([["a", 0]])]) {
      expect(change(bank.select(selection)).every((value) => value === 0)).toBe(true);
    }
    expect(values(bank.select(new Map()), "linear.A").dims).toEqual([3, rank.kind === "fixed" ? 12 : 0]);
  });

  test("a slot that the file leaves out changes nothing", () => {
    const bank = bankOf(rank);
    bank.add(
      "a",
      adapterBytes(2, 1, (name) => name.startsWith("conv")),
      "a",
    );
    const linear = change(bank.select(new Map([["a", 1]]))).slice(0, inFeatures * outFeatures);
    expect(linear.every((value) => value === 0)).toBe(true);
  });

  test("switching passes the same tensors again", () => {
    const bank = bankOf(rank);
    bank.add("a", adapterBytes(2, 1), "a");
    bank.add("b", adapterBytes(2, 2), "b");
    const first = bank.select(new Map([["a", 1]])).get("unet")!["conv.A"];
    bank.select(new Map([["b", 1]]));
    expect(bank.select(new Map([["a", 0.5]])).get("unet")!["conv.A"]).toBe(first);
    const both = (strength: number) =>
      bank.select(new Map(Object.entries({ a: strength, b: 1 }))).get("unet")!["conv.A"];
    expect(both(0.25)).toBe(both(0.75));
  });

  test("a graph in float16 gets the same numbers", () => {
    const [single, half] = [bankOf(rank), bankOf(rank, "float16")];
    for (const bank of [single, half]) {
      bank.add("a", adapterBytes(2, 1), "a");
      bank.add("b", adapterBytes(3, 2), "b");
    }
    const selection = new Map(Object.entries({ a: 1, b: -2 }));
    for (const name of ["linear.A", "conv.B", "strength"]) {
      const tensor = half.select(selection).get("unet")![name];
      expect(tensor.type).toBe("float16");
      // 1, 2 and 3 in binary16 are 0x3c00, 0x4000 and 0x4200.
      const bits = new Uint16Array((tensor.data as Uint16Array).buffer);
      const numbers = [0x0000, 0x3c00, 0x4000, 0x4200];
      const decoded = [...bits].map((value) => Math.sign(0x8000 - value) * numbers.indexOf(value & 0x7fff) + 0);
      expect(decoded).toEqual(values(single.select(selection), name).data.map((value) => value + 0));
    }
  });
});

test("ranks that a file pads with zeros take no part in a blend", () => {
  const bank = bankOf({ kind: "fixed", rank: 8 });
  bank.add("a", adapterBytes(8, 1, undefined, 5), "a");
  bank.add("b", adapterBytes(3, 2), "b");
  const feeds = bank.select(new Map(Object.entries({ a: 2, b: 3 })));
  expect(values(feeds, "strength").data).toEqual([2, 2, 2, 2, 2, 3, 3, 3]);
});

describe.each([
  ["int8", "I8", Int8Array, 127],
  ["int16", "I16", Int16Array, 32767],
] as const)("integer inputs: %s", (type, dtype, array, largest) => {
  const identity = { graph: "graph 1", profile: "profile 1" };
  const dynamic = { kind: "dynamic" } as const;
  const bank = (rank: SlotsFile["rank"] = dynamic) => {
    const slots = slotsOf(rank);
    slots.components.unet!.elementType = type;
    const input = (name: string): Port => ({ name, type: name === "strength" ? "float32" : type, shape: [] });
    return new AdapterBank(ort, slots, new Map([["unet", { input }]]), "slots.json", identity);
  };
  /** Codes that reach the ends of the grid. */
  const codes = (rank: number, seed: number, metadata: Record<string, string> = {}, keep = (_: string) => true) => {
    const tensor = (name: string, shape: number[]): SafetensorsInput => {
      const length = shape.reduce((a, b) => a * b, 1);
      const data = new array(length);
      for (let i = 0; i < length; i++) data[i] = [largest, -largest, 0, seed, i][i % 5];
      return { name, dtype, shape, data };
    };
    const tensors = [
      tensor("linear.A", [inFeatures, rank]),
      tensor("linear.B", [rank, outFeatures]),
      tensor("conv.A", [rank, inFeatures, ...kernel]),
      tensor("conv.B", [outFeatures, rank, 1, 1]),
    ].filter(({ name }) => keep(name));
    return serializeSafetensors(tensors, {
      "quad.rank": String(rank),
      "quad.graph": identity.graph,
      "quad.profile": identity.profile,
      ...metadata,
    });
  };

  test("codes go to the graph as they are, without a copy when switching", () => {
    const adapters = bank();
    adapters.add("a", codes(2, 5), "a");
    adapters.add("b", codes(3, 7), "b");
    const feeds = adapters.select(new Map([["a", 0.5]]));
    const tensor = feeds.get("unet")!["linear.A"];
    expect([tensor.type, tensor.dims]).toEqual([type, [3, 2]]);
    expect(tensor.data).toEqual(array.of(largest, -largest, 0, 5, 4, largest));
    expect(values(feeds, "strength").data).toEqual([0.5, 0.5]);
    adapters.select(new Map([["b", 1]]));
    expect(adapters.select(new Map([["a", 1]])).get("unet")!["linear.A"]).toBe(tensor);
  });

  test("a blend is the sum of its members, strengths apart from the codes", () => {
    for (const rank of [dynamic, { kind: "fixed", rank: 8 } as const]) {
      const adapters = bank(rank);
      adapters.add("a", codes(2, 5), "a");
      adapters.add("b", codes(3, 7), "b");
      const [a, b] = ["a", "b"].map((name) => change(adapters.select(new Map([[name, 1]]))));
      const blend = change(adapters.select(new Map(Object.entries({ a: 0.25, b: -2 }))));
      expect(blend).toEqual(a!.map((value, index) => 0.25 * value - 2 * b![index] + 0));
      expect(change(adapters.select(new Map())).every((value) => value === 0)).toBe(true);
    }
  });

  test("slots that are left out, and padding, are codes of zero", () => {
    const adapters = bank({ kind: "fixed", rank: 4 });
    adapters.add(
      "a",
      codes(2, 5, {}, (name) => name.startsWith("conv")),
      "a",
    );
    const feeds = adapters.select(new Map([["a", 1]]));
    expect(values(feeds, "linear.A")).toEqual({ data: new Array(12).fill(0), dims: [3, 4] });
    expect(feeds.get("unet")!["linear.A"].type).toBe(type);
    expect(values(feeds, "conv.B").data).toEqual([largest, -largest, 0, 0, 0, 5, 0, 0]);
  });

  test.each([
    ["floats", adapterBytes(2, 1), new RegExp(`linear.A: .*expected ${dtype}, got F32.*quad add`)],
    ["another graph's codes", codes(2, 1, { "quad.graph": "graph 2" }), /another graph .*graph 1, got graph 2/],
    ["another profile's codes", codes(2, 1, { "quad.profile": "other" }), /another quantization profile .*got other/],
    [
      "codes that do not say whose they are",
      serializeSafetensors([
        { name: "linear.A", dtype, shape: [3, 1], data: array.of(1, 2, 3) },
        { name: "linear.B", dtype, shape: [1, 2], data: array.of(1, 2) },
      ]),
      /x.safetensors: quad.graph: .*does not say which bundle/,
    ],
  ])("refuses %s", (_, bytes, message) => {
    const add = () => bank().add("x", bytes, "x.safetensors");
    expect(add).toThrow(InputError);
    expect(add).toThrow(message);
  });

  test("float graphs refuse codes, and slots of another element type than the graph's are refused", () => {
    expect(() => bankOf(dynamic).add("x", codes(2, 1), "x.safetensors")).toThrow(/floats, and this one is encoded/);
    const slots = slotsOf(dynamic);
    slots.components.unet!.elementType = type;
    const input = (name: string): Port => ({ name, type: "float32", shape: [] });
    const make = () => new AdapterBank(ort, slots, new Map([["unet", { input }]]), "slots.json");
    expect(make).toThrow(new RegExp(`slots.json: linear.A: .*expected ${type}, got float32`));
  });
});

describe("errors", () => {
  const fixed = { kind: "fixed", rank: 4 } as const;
  const dynamic = { kind: "dynamic" } as const;

  test.each([
    ["a rank beyond the graph's", fixed, adapterBytes(5, 1), /x.safetensors: .*at most 4, got 5.*rank 5 or more/],
    ["half a slot", dynamic, adapterBytes(2, 1, (name) => name !== "conv.B"), /conv.B: one half of a slot is missing/],
    ["an empty file", dynamic, serializeSafetensors([]), /no adapter tensors/],
    [
      "another model's tensor",
      dynamic,
      serializeSafetensors([{ name: "other.A", dtype: "F32", shape: [1], data: new Float32Array(1) }]),
      /x.safetensors: other.A: .*no such adapter input/,
    ],
    [
      "another shape",
      dynamic,
      serializeSafetensors([{ name: "linear.A", dtype: "F32", shape: [4, 2], data: new Float32Array(8) }]),
      /linear.A: .*expected \[3, 2\], got \[4, 2\]/,
    ],
  ])("refuses %s", (_, rank, bytes, message) => {
    const add = () => bankOf(rank).add("x", bytes, "x.safetensors");
    expect(add).toThrow(InputError);
    expect(add).toThrow(message);
  });

  test("refuses blends beyond a fixed rank, unknown names and strengths that are not numbers", () => {
    const bank = bankOf(fixed);
    bank.add("a", adapterBytes(3, 1), "a");
    bank.add("b", adapterBytes(2, 2), "b");
    expect(() => bank.select(new Map(Object.entries({ a: 1, b: 1 })))).toThrow(/takes rank 4.*a 3 \+ b 2/);
    expect(() => bank.select(new Map([["z", 1]]))).toThrow(/no adapter z \(expected one of a, b\)/);
    expect(() => bank.select(new Map([["a", Number.NaN]]))).toThrow(InputError);
  });
});
