import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { fromFloat32, parseSafetensors, type SafetensorsTensor, toFloat32 } from "@quad-lora/base";
import { createSession, loadModel, type Model, memorySource, runSession, Tensor } from "@quad-lora/onnx";
import { expose, openModelFolder, readSlots } from "quad-lora";
import { describe, expect, test } from "vitest";
import { maxRelative, temporaryFolder } from "./helpers/models.ts";

// What PyTorch gave with each adapter merged into the weights (test/families): what the exposed graphs have to give.
const root = fileURLToPath(new URL("families/", import.meta.url));
const scratch = temporaryFolder();

interface Case {
  component: string;
  adapter: string | null;
  strength: number;
  inputs: string[];
  outputs: string[];
}
interface Reference {
  cases: Record<string, Case>;
  adapters: Record<string, { modules: Record<string, number>; rank: number }>;
}

/** Its biases and normalization scales are what no pair of factors can hold: told, and the result is another one. */
const partial = "bfl_control";
const lostOfPartial = /\.lora_B\.bias$|\.norm\.(query|key)_norm\.scale$/;

function adapterFiles(family: string): Record<string, string> {
  const folder = join(root, family, "adapters");
  return Object.fromEntries(
    readdirSync(folder).map((file) => [file.replace(/\.safetensors$/, ""), join(folder, file)]),
  );
}

function inputTensor(model: Model, name: string, tensor: SafetensorsTensor): Tensor {
  if (tensor.dtype === "I64") return new Tensor("int64", tensor.shape, memorySource(tensor.bytes.slice()));
  return tensorFor(model, name, tensor.shape, toFloat32(tensor));
}

/** Float32 values in the element type of a graph's input. */
function tensorFor(model: Model, name: string, shape: readonly number[], values: Float32Array): Tensor {
  const type = model.graph.inputs.find((input) => input.name === name)!.type;
  if (type?.kind !== "tensor" || type.dataType !== "float16") return Tensor.float32(shape, values);
  const halves = fromFloat32(values, "F16");
  return new Tensor(
    "float16",
    shape,
    memorySource(new Uint8Array(halves.buffer, halves.byteOffset, halves.byteLength)),
  );
}

describe.each(["sdxl", "sd3", "flux", "pixart", "sana", "controlnet", "sd15-fp16"])("%s", (family) => {
  const reference = JSON.parse(readFileSync(join(root, family, "reference.json"), "utf8")) as Reference;
  const { tensors } = parseSafetensors(
    new Uint8Array(readFileSync(join(root, family, "reference.safetensors"))),
    family,
  );
  const out = join(scratch, family);
  const exposed = expose(join(root, family, "model"), { out, adapters: adapterFiles(family), slots: "used" });

  test("every adapter's keys fit, and adapt the layers that its maker adapted", async () => {
    for (const { name, report, layers } of (await exposed).adapters) {
      const lost = [...report.unmatched, ...report.mismatched].map(({ key }) => key);
      expect(name === partial ? lost.filter((key) => !lostOfPartial.test(key)) : lost, name).toEqual([]);
      expect(report.warnings, name).toEqual([]);
      const { modules } = reference.adapters[name];
      expect(layers, name).toBe(Object.values(modules).reduce((a, b) => a + b, 0));
    }
  });

  test("every exposed graph gives PyTorch's result with each adapter, and without any", async () => {
    await exposed;
    const slots = await readSlots(out);
    const { adaptable } = await openModelFolder(join(root, family, "model"));
    const tolerance = family === "sd15-fp16" ? 5e-3 : 1e-4;
    let compared = 0;
    for (const component of adaptable) {
      const graph = slots.components[component];
      if (!graph) continue;
      const model = loadModel(join(out, component, "model.onnx"));
      const session = await createSession(model);
      for (const [name, { adapter, strength, outputs, inputs, ...rest }] of Object.entries(reference.cases)) {
        if (rest.component !== component || adapter === partial) continue;
        const path = join(out, "adapters", `${adapter}.safetensors`);
        const bound = adapter ? parseSafetensors(readFileSync(path), path).tensors : new Map();
        const rank = adapter ? reference.adapters[adapter].rank : 1;
        const feeds = Object.fromEntries(
          inputs.map((input) => [input, inputTensor(model, input, tensors.get(`${name}.inputs.${input}`)!)]),
        );
        for (const { inputA, shapeA, inputB, shapeB } of graph.slots)
          for (const [input, shape] of [[inputA, shapeA] as const, [inputB, shapeB] as const]) {
            const dims = shape.map((size) => (size === "rank" ? rank : size));
            const values = bound.has(input)
              ? toFloat32(bound.get(input))
              : new Float32Array(dims.reduce((a, b) => a * b));
            feeds[input] = tensorFor(model, input, dims, values);
          }
        feeds[graph.strengthInput] = Tensor.float32([rank], new Float32Array(rank).fill(strength));
        const got = await runSession(session, feeds);
        for (const output of outputs) {
          const expected = toFloat32(tensors.get(`${name}.outputs.${output}`)!);
          expect(maxRelative(got.get(output)!.toFloat32(), expected), `${name} ${output}`).toBeLessThan(tolerance);
          compared++;
        }
      }
    }
    const withAdapter = Object.values(reference.cases).filter(({ adapter }) => adapter !== null && adapter !== partial);
    expect(compared).toBeGreaterThanOrEqual(withAdapter.length);
  });
});
