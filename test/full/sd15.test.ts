import { execFileSync, spawn } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseSafetensors, toFloat32 } from "@quad-lora/base";
import { checkModel, createSession, loadModel, type Model, runSession, Tensor } from "@quad-lora/onnx";
import type { SlotsFile } from "@quad-lora/runtime";
import { findLayers, importAdapter, toModule, writeSafetensors } from "quad-lora";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { mergeAdapter } from "../../packages/quad/src/expose/merge-adapter.ts";
import { maxRelative, randomTensor } from "../helpers/models.ts";
import { generateScript, kohyaLayers, kohyaTensors } from "../helpers/sd15.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));

// 3.4 GB of weights, twice on disk, and three runs of the whole UNet: not for every day.
describe.skipIf(process.env.QUAD_FULL_TESTS !== "1")("Stable Diffusion 1.5 with weights", () => {
  let folder: string;
  let model: string;
  let exposed: string;
  let adapter: string;
  /** Peak resident memory of `quad expose`, in kB. */
  let peak = 0;

  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), "quad-sd15-"));
    model = join(folder, "model");
    exposed = join(folder, "exposed");
    adapter = join(folder, "kohya.safetensors");
    mkdirSync(model);
    // A folder generated before, to save the time when working on this test.
    if (process.env.QUAD_SD15) symlinkSync(process.env.QUAD_SD15, join(model, "unet"));
    else execFileSync(process.execPath, [generateScript, join(model, "unet")]);
    writeFileSync(join(model, "model_index.json"), JSON.stringify({ _class_name: "OnnxStableDiffusionPipeline" }));
    await writeSafetensors(adapter, kohyaTensors(kohyaLayers()));
    peak = await exposeInProcess(model, adapter, exposed);
  }, 900_000);
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  test("exposing streams the weights: memory stays far below the model's size", () => {
    expect(existsSync(join(exposed, "unet", "model.onnx_data"))).toBe(true);
    expect(peak).toBeGreaterThan(0);
    expect(peak * 1024).toBeLessThan(2e9);
    checkModel(loadModel(join(exposed, "unet", "model.onnx")));
  });

  test("unbound it is the original, bound it is the merged model", async () => {
    const original = loadModel(join(model, "unet", "model.onnx"));
    const base = await runUnet(original, {});
    const slots = JSON.parse(readFileSync(join(exposed, "slots.json"), "utf8")) as SlotsFile;
    const { slots: list, strengthInput } = slots.components.unet;
    const open = loadModel(join(exposed, "unet", "model.onnx"));
    const bound = parseSafetensors(readFileSync(join(exposed, "adapters", "kohya.safetensors")), "kohya").tensors;
    const feeds = (rank: number) => {
      const result: Record<string, Tensor> = {
        [strengthInput]: Tensor.float32([rank], new Float32Array(rank).fill(1)),
      };
      for (const { inputA, shapeA, inputB, shapeB } of list) {
        for (const [name, shape] of [[inputA, shapeA] as const, [inputB, shapeB] as const]) {
          const dims = shape.map((size) => (size === "rank" ? rank : size));
          result[name] = Tensor.float32(dims, rank === 0 ? new Float32Array(0) : toFloat32(bound.get(name)!));
        }
      }
      return result;
    };
    const [unbound, adapted] = await runUnet(open, feeds(0), feeds(4));
    expect(maxRelative(unbound, base[0])).toBeLessThan(1e-5);

    const { layers } = findLayers(original);
    const modules = layers.map((layer) => toModule("unet", layer));
    mergeAdapter(original, layers, (await importAdapter(adapter, modules)).layers);
    const [merged] = await runUnet(original, {});
    expect(maxRelative(adapted, merged)).toBeLessThan(1e-4);
    expect(maxRelative(merged, base[0])).toBeGreaterThan(1e-2);
  }, 900_000);
});

/** Runs the UNet once for each set of adapter inputs, on 32 x 32 latents. */
async function runUnet(model: Model, ...adapters: Record<string, Tensor>[]): Promise<Float32Array[]> {
  const inputs = {
    sample: randomTensor([1, 4, 32, 32], 1),
    timestep: Tensor.int64([1], [500]),
    encoder_hidden_states: randomTensor([1, 77, 768], 2),
  };
  const declared = model.graph.inputs.find(({ name }) => name === "timestep")!;
  const timestep =
    declared.type?.kind === "tensor" && declared.type.shape?.length === 0 ? Tensor.int64([], [500]) : inputs.timestep;
  const typed = declared.dataType === "float32" ? Tensor.float32(timestep.dims, [500]) : timestep;
  const session = await createSession(model);
  try {
    const results: Float32Array[] = [];
    for (const adapter of adapters) {
      const outputs = await runSession(session, { ...inputs, timestep: typed, ...adapter });
      results.push(outputs.get("out_sample")!.toFloat32());
    }
    return results;
  } finally {
    await session.release();
  }
}

/** Runs `quad expose` in a process that prints its own peak memory (kB) at the end. */
function exposeInProcess(model: string, adapter: string, out: string): Promise<number> {
  const script = `
    import { main } from ${JSON.stringify(join(root, "packages/quad/dist/cli/main.js"))};
    await main(["expose", ${JSON.stringify(model)}, "--adapter", ${JSON.stringify(`kohya=${adapter}`)}, "--out", ${JSON.stringify(out)}]);
    console.log("peak " + process.resourceUsage().maxRSS);
  `;
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, ["--input-type=module", "--eval", script], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    let output = "";
    child.stdout.on("data", (data) => (output += data));
    child.on("close", (code) => {
      const peak = /peak (\d+)/.exec(output)?.[1];
      if (code === 0 && peak) resolve(Number(peak));
      else reject(new Error(`quad expose ended with ${code}: ${output}`));
    });
  });
}
