import { encodeFloat16, InputError } from "@quad-lora/base";
import { type Dimension, Model, runModel, Tensor } from "@quad-lora/onnx";
import type { TensorData } from "@quad-lora/runtime";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { denoiserDims, describeShape, isSameSize, sampleInput } from "./denoiser.ts";
import { alignBatches, type DenoiserCall, joinRows, pickInputRows, shapeOf, withRows } from "./denoiser-calls.ts";
import { perRowTimesteps, readTimesteps, timestepTensor } from "./timesteps.ts";

/** Inputs of the denoisers as Optimum exports them, with dimensions that a picture of 8 x 12 latents gives them. */
const families: Record<string, Record<string, [declared: Dimension[], dims: number[]]>> = {
  "Stable Diffusion": {
    sample: [
      ["batch_size", 4, "height", "width"],
      [2, 4, 8, 12],
    ],
    timestep: [[], []],
    encoder_hidden_states: [
      ["batch_size", "sequence_length", 32],
      [2, 77, 32],
    ],
  },
  "Stable Diffusion XL": {
    sample: [
      ["batch_size", 4, "height", "width"],
      [2, 4, 8, 12],
    ],
    timestep: [[], []],
    encoder_hidden_states: [
      ["batch_size", "sequence_length", 64],
      [2, 77, 64],
    ],
    text_embeds: [
      ["batch_size", 32],
      [2, 32],
    ],
    time_ids: [
      ["batch_size", 6],
      [2, 6],
    ],
  },
  LCM: {
    sample: [
      ["batch_size", 4, "height", "width"],
      [1, 4, 8, 12],
    ],
    timestep: [["steps"], [1]],
    encoder_hidden_states: [
      ["batch_size", "sequence_length", 32],
      [1, 77, 32],
    ],
    timestep_cond: [
      ["batch_size", 32],
      [1, 32],
    ],
  },
  "Stable Diffusion 3": {
    hidden_states: [
      ["batch_size", 16, "height", "width"],
      [2, 16, 8, 12],
    ],
    encoder_hidden_states: [
      ["batch_size", "sequence_length", 80],
      [2, 93, 80],
    ],
    pooled_projections: [
      ["batch_size", 64],
      [2, 64],
    ],
    timestep: [["step"], [2]],
  },
  Flux: {
    hidden_states: [
      ["batch_size", "packed_height_width", 64],
      [2, 24, 64],
    ],
    encoder_hidden_states: [
      ["batch_size", "sequence_length", 48],
      [2, 40, 48],
    ],
    pooled_projections: [
      ["batch_size", 32],
      [2, 32],
    ],
    timestep: [["step"], [2]],
    img_ids: [
      ["packed_height_width", 3],
      [24, 3],
    ],
    txt_ids: [
      ["sequence_length", 3],
      [40, 3],
    ],
    guidance: [["batch_size"], [2]],
  },
  PixArt: {
    hidden_states: [
      ["batch_size", 4, "height", "width"],
      [2, 4, 8, 12],
    ],
    encoder_hidden_states: [
      ["batch_size", "sequence_length", 48],
      [2, 20, 48],
    ],
    encoder_attention_mask: [
      ["batch_size", "sequence_length"],
      [2, 20],
    ],
    timestep: [["batch_size"], [2]],
  },
  "Stable Diffusion with a ControlNet": {
    sample: [
      ["batch_size", 4, "height", "width"],
      [2, 4, 8, 12],
    ],
    timestep: [[], []],
    encoder_hidden_states: [
      ["batch_size", "sequence_length", 32],
      [2, 77, 32],
    ],
    down_block_additional_residuals_0: [
      ["batch_size", 16, "h0", "w0"],
      [2, 16, 8, 12],
    ],
    down_block_additional_residuals_3: [
      ["batch_size", 32, "h3", "w3"],
      [2, 32, 4, 6],
    ],
    mid_block_additional_residual: [
      ["batch_size", 32, "hm", "wm"],
      [2, 32, 4, 6],
    ],
  },
  "one of a family to come": {
    hidden_states: [
      ["batch_size", 16, "height", "width"],
      [2, 16, 8, 12],
    ],
    timestep: [["batch_size"], [2]],
    encoder_hidden_states: [
      ["batch_size", "sequence_length", 80],
      [2, 93, 80],
    ],
    a_new_mask: [
      ["batch_size", "sequence_length"],
      [2, 93],
    ],
    sizes_of_its_own: [
      ["batch_size", "of_its_own"],
      [2, 5],
    ],
  },
};

type Ports = (typeof families)[string];

const zeros = (dims: readonly number[]): TensorData => ({
  type: "float32",
  dims: [...dims],
  data: new Float32Array(dims.reduce((product, length) => product * length, 1)),
});
const callOf = (ports: Ports): DenoiserCall => {
  const inputs = Object.fromEntries(Object.entries(ports).map(([name, [, dims]]) => [name, zeros(dims)]));
  return { inputs, output: zeros(inputs[sampleInput(Object.keys(inputs))].dims) };
};
const valuesOf = (ports: Ports) => {
  const { graph } = new Model();
  return Object.entries(ports).map(([name, [declared]]) => graph.addInput(name, "float32", declared));
};
const task = (...calls: DenoiserCall[]) => ({ task: "a", calls });

describe("the shape of recorded calls", () => {
  test.each(Object.entries(families))("%s: fixes the graph's inputs to what was recorded", (_, ports) => {
    const shape = shapeOf([task(callOf(ports))]);
    const dims = Object.fromEntries(Object.entries(ports).map(([name, [, recorded]]) => [name, recorded]));
    expect(denoiserDims(valuesOf(ports), shape)).toEqual(dims);
  });

  test.each(Object.entries(families))(
    "%s: another number of rows changes what has rows, and nothing else",
    (_, ports) => {
      const call = callOf(ports);
      const rows = call.output.dims[0];
      const shape = { ...shapeOf([task(call)]), batch: 6 };
      for (const [name, dims] of Object.entries(denoiserDims(valuesOf(ports), shape))) {
        const [declared, recorded] = ports[name];
        const isRows = typeof declared[0] === "string" && recorded[0] === rows && /batch_size|step$/.test(declared[0]);
        expect(dims, name).toEqual(isRows ? [6, ...recorded.slice(1)] : recorded);
      }
    },
  );

  test("is that of its words, and differs with the size alone", () => {
    const picture = shapeOf([task(callOf(families["Stable Diffusion"]))]);
    const packed = shapeOf([task(callOf(families.Flux))]);
    expect(describeShape(picture)).toBe("latents 8 x 12, 77 tokens");
    expect(describeShape(packed)).toBe("24 patches, 40 tokens");
    expect(isSameSize(picture, { ...picture, batch: 7 })).toBe(true);
    expect(isSameSize(picture, { ...picture, width: 8 })).toBe(false);
    expect(isSameSize(picture, packed)).toBe(false);
  });

  test.each([
    ["no call was recorded", () => [task()], /task "a": no call of the denoiser was recorded/],
    [
      "there are no latents",
      () => [task({ inputs: { x: zeros([1, 4]) }, output: zeros([1, 4]) })],
      /no input for the latents.*got x/,
    ],
    [
      "the latents have an axis too many",
      () => [task({ inputs: { sample: zeros([1, 4, 2, 8, 8]) }, output: zeros([1, 4, 2, 8, 8]) })],
      /input "sample": .*layout.*got \[1,4,2,8,8\]/,
    ],
    [
      "an input is missing in some call",
      () => {
        const whole = callOf(families["Stable Diffusion"]);
        const { timestep, ...inputs } = whole.inputs;
        return [task(whole), { task: "b", calls: [{ ...whole, inputs }] }];
      },
      /task "b", input "timestep": .*different inputs/,
    ],
  ])("is refused in one line where %s", (_, tasks, message) => {
    expect(() => shapeOf(tasks())).toThrow(InputError);
    expect(() => shapeOf(tasks())).toThrow(message);
  });

  test("a length that nothing tells is refused by input and axis", () => {
    const { graph } = new Model();
    const inputs = [
      graph.addInput("hidden_states", "float32", ["batch", 4, "height", "width"]),
      graph.addInput("depth", "float32", ["batch", "layers"]),
    ];
    expect(() => denoiserDims(inputs, { batch: 1, height: 8, width: 8 })).toThrow(
      /input "depth": cannot tell the length of axis 1/,
    );
  });
});

describe("rows of calls", () => {
  const counted = (dims: number[], type: "float32" | "int64" | "bool" | "float16" = "float32"): TensorData => {
    const count = dims.reduce((product, length) => product * length, 1);
    const numbers = Array.from({ length: count }, (_, index) => index);
    const data = {
      float32: () => Float32Array.from(numbers),
      float16: () => encodeFloat16(Float32Array.from(numbers)),
      int64: () => BigInt64Array.from(numbers, BigInt),
      bool: () => Uint8Array.from(numbers, (number) => number % 2),
    }[type]();
    return { type, dims, data };
  };
  const flux = (rows: number): DenoiserCall => ({
    inputs: {
      hidden_states: counted([rows, 2, 3]),
      encoder_hidden_states: counted([rows, 2, 2], "float16"),
      encoder_attention_mask: counted([rows, 2], "int64"),
      timestep: counted([rows]),
      guidance: counted([rows]),
      img_ids: counted([2, 3]),
      txt_ids: counted([2, 3]),
    },
    output: counted([rows, 2, 3]),
  });

  test("single rows are repeated in every type; positions, which all rows share, are not", () => {
    const [, { calls }] = alignBatches([task(flux(2)), task(flux(1))]);
    const [{ inputs, output }] = calls;
    expect(output.dims).toEqual([2, 2, 3]);
    for (const name of ["hidden_states", "encoder_hidden_states", "encoder_attention_mask", "timestep", "guidance"]) {
      const single = flux(1).inputs[name];
      expect(inputs[name].dims, name).toEqual([2, ...single.dims.slice(1)]);
      expect(inputs[name].type).toBe(single.type);
      const values = [...(single.data as Float32Array)];
      expect([...(inputs[name].data as Float32Array)], name).toEqual([...values, ...values]);
    }
    expect([inputs.img_ids, inputs.txt_ids]).toEqual([flux(1).inputs.img_ids, flux(1).inputs.txt_ids]);
    expect(shapeOf([task(flux(2)), task(...calls)])).toMatchObject({ batch: 2, sequence: 2, rowTimesteps: true });
  });

  test("one time step for all rows stays one", () => {
    const call = { ...flux(2), inputs: { ...flux(2).inputs, timestep: counted([1]) } };
    const single = { ...flux(1), inputs: { ...flux(1).inputs, timestep: counted([1]) } };
    const [, { calls }] = alignBatches([task(call), task(single)]);
    expect(calls[0].inputs.timestep).toEqual(single.inputs.timestep);
    expect(withRows(single, { batch: 2, rowTimesteps: true }).inputs.timestep.dims).toEqual([2]);
  });

  test("picked rows joined again are the call", () => {
    fc.assert(
      fc.property(fc.integer({ min: 2, max: 5 }), (rows) => {
        const call = flux(rows);
        const parts = Array.from({ length: rows }, (_, row) => pickInputRows(call, [row]));
        for (const [name, tensor] of Object.entries(call.inputs)) {
          if (name.endsWith("_ids")) continue;
          expect(joinRows(parts.map((inputs) => inputs[name]))).toEqual(tensor);
        }
      }),
      { seed: 3 },
    );
  });
});

describe("time steps", () => {
  test.each(["float32", "float64", "float16", "int64", "int32"])("%s: are read as they were written", (type) => {
    for (const dims of [[], [1], [3]]) {
      const tensor = timestepTensor({ type, dims }, dims[0] === 3 ? [999, 500, 0] : [500]);
      expect([tensor.type, tensor.dims]).toEqual([type, dims]);
      expect(readTimesteps(tensor)).toEqual(dims[0] === 3 ? [999, 500, 0] : [500]);
    }
    expect(readTimesteps(timestepTensor({ type, dims: [2] }, [7]))).toEqual([7, 7]);
  });

  test("integers are rounded", () => {
    for (const type of ["int64", "int32"])
      expect(readTimesteps(timestepTensor({ type, dims: [] }, [12.6]))).toEqual([13]);
  });

  test("another type is refused", () => {
    expect(() => timestepTensor({ type: "string", dims: [] }, [1])).toThrow(/string/);
  });

  test("a graph that expands its time step takes one per row instead, and computes the same", async () => {
    const model = new Model();
    const { graph } = model;
    model.opsets.set("", 17);
    const timestep = graph.addInput("timestep", "float32", []);
    const sample = graph.addInput("sample", "float32", [3, 2]);
    const axes = graph.addInitializer("axes", Tensor.int64([1], [0]));
    const count = graph.addInitializer("rows", Tensor.int64([1], [3]));
    const vector = graph.apply("Unsqueeze", [timestep, axes]);
    vector.type = { kind: "tensor", dataType: "float32", shape: [1] };
    const rows = graph.apply("Expand", [vector, count]);
    rows.type = { kind: "tensor", dataType: "float32", shape: [3] };
    const column = graph.apply("Unsqueeze", [rows, graph.addInitializer("last", Tensor.int64([1], [1]))]);
    graph.outputs.push(graph.apply("Add", [sample, column]));
    expect(await perRowTimesteps(model, 3)).toEqual({ type: "float32", dims: [3] });
    const feeds = { sample: Tensor.float32([3, 2], new Float32Array(6)), timestep: Tensor.float32([3], [1, 2, 3]) };
    const [output] = (await runModel(model, feeds)).values();
    expect(output.toNumbers()).toEqual([1, 1, 2, 2, 3, 3]);
  });

  test("a graph without one has none", async () => {
    const model = new Model();
    model.graph.addInput("sample", "float32", [1]);
    expect(await perRowTimesteps(model, 1)).toBeNull();
  });
});
