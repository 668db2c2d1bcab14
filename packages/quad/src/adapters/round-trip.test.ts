import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { loadModel } from "@quad-lora/onnx";
import { beforeAll, describe, expect, test } from "vitest";
import { openSafetensors } from "../files/safetensors.ts";
import { importAdapter } from "./import.ts";
import { areEqual, failure, folder, ramp, scaled } from "./testing.ts";
import type { AdaptableModule } from "./types.ts";
import { writeKohya, writePeft } from "./write.ts";

describe("Pocket's adapters", () => {
  const pocket = fileURLToPath(new URL("../../../../models/pocket/", import.meta.url));
  /** The UNet's layers from its ONNX graph: paths from node names, shapes from the weights. */
  function pocketModules(): AdaptableModule[] {
    const model = loadModel(join(pocket, "unet/model.onnx"));
    return [...model.graph.nodes].flatMap((node): AdaptableModule[] => {
      const path = /^\/(.+)\/(MatMul|Gemm|Conv)$/.exec(node.name);
      const shape = node.inputs[1]?.initializer?.dims;
      if (!path || !shape) return [];
      const name = path[1].replaceAll("/", ".");
      const [first, second, height, width] = shape as [number, number, number, number];
      if (path[2] === "Conv")
        return [
          { component: "unet", name, kind: "conv", inFeatures: second, outFeatures: first, kernel: [height, width] },
        ];
      // MatMul multiplies by [in, out], Gemm by the transpose of [out, in].
      const [inFeatures, outFeatures] = path[2] === "MatMul" ? [first, second] : [second, first];
      return [{ component: "unet", name, kind: "linear", inFeatures, outFeatures }];
    });
  }
  let pocketList: AdaptableModule[];
  beforeAll(() => {
    pocketList = pocketModules();
  });

  test.each([
    ["flat.safetensors", "kohya", 360, 120, 16, "lora_unet_", ".lora_down.weight", ".lora_up.weight", 0.5],
    ["sketch", "peft", 240, 120, 8, "unet.", ".lora_A.weight", ".lora_B.weight", 1],
    ["erase.safetensors", "diffusers", 240, 120, 8, "unet.", ".lora.down.weight", ".lora.up.weight", 1],
  ])("%s is read whole", async (file, format, keyCount, layerCount, rank, prefix, downSuffix, upSuffix, scale) => {
    const path = join(pocket, "adapters", file);
    const adapter = await importAdapter(path, pocketList);
    expect(adapter.format).toBe(format);
    expect(adapter.name).toBe(file.replace(".safetensors", ""));
    expect(adapter.layers).toHaveLength(layerCount);
    expect(adapter.report).toMatchObject({ unmatched: [], mismatched: [], rankMin: rank, rankMax: rank });
    expect(adapter.report.matched).toHaveLength(keyCount);
    const reader = await openSafetensors(file === "sketch" ? join(path, "adapter_model.safetensors") : path);
    for (const { module, down, up } of adapter.layers) {
      const name = prefix + (format === "kohya" ? module.replaceAll(".", "_") : module);
      expect(areEqual(down, await reader.readFloat32(name + downSuffix)), module).toBe(true);
      expect(areEqual(up, scaled(await reader.readFloat32(name + upSuffix), scale)), module).toBe(true);
    }
    await reader.close();
  });

  test.each(["flat.safetensors", "sketch"])("%s reads back identically after writing", async (file) => {
    const adapter = await importAdapter(join(pocket, "adapters", file), pocketList);
    const [kohya, peft] = [join(folder, "out.safetensors"), join(folder, "out")];
    await writeKohya(kohya, adapter.layers, pocketList);
    await writePeft(peft, adapter.layers, pocketList);
    for (const path of [kohya, peft]) {
      const back = await importAdapter(path, pocketList);
      expect(back.report).toMatchObject({ unmatched: [], mismatched: [] });
      expect(back.layers.map(({ module, rank }) => [module, rank])).toEqual(
        adapter.layers.map(({ module, rank }) => [module, rank]),
      );
      for (const [i, { module, down, up }] of adapter.layers.entries())
        expect(areEqual(back.layers[i].down, down) && areEqual(back.layers[i].up, up), module).toBe(true);
    }
  });
});

test("written adapters keep ranks that differ, components and the ends of paths apart", async () => {
  const list: AdaptableModule[] = [
    { component: "text_encoder", name: "a.conv1", kind: "linear", inFeatures: 2, outFeatures: 2 },
    { component: "text_encoder_2", name: "a.conv1", kind: "linear", inFeatures: 2, outFeatures: 2 },
    { component: "unet", name: "conv1", kind: "conv", inFeatures: 2, outFeatures: 3, kernel: [3, 1] },
    { component: "unet", name: "x.conv1", kind: "conv", inFeatures: 4, outFeatures: 3, groups: 2 },
  ];
  const layers = list.map((module, i) => {
    const rank = i + 1;
    const size = (module.inFeatures / (module.groups ?? 1)) * (module.kernel ?? [1, 1])[0];
    const { component, name } = module;
    return { component, module: name, rank, down: ramp(rank * size, i), up: ramp(module.outFeatures * rank, i + 1) };
  });
  for (const dtype of ["F32", "F16", "BF16"] as const) {
    const [kohya, peft] = [join(folder, `k-${dtype}.safetensors`), join(folder, `p-${dtype}`)];
    await writeKohya(kohya, layers, list, { dtype, metadata: { note: "x" } });
    await writePeft(peft, layers, list, { dtype });
    for (const path of [kohya, peft]) {
      const { layers: back, report } = await importAdapter(path, list);
      expect(back).toEqual(layers);
      expect(report).toMatchObject({ unmatched: [], mismatched: [], rankMin: 1, rankMax: 4 });
    }
  }
  const unet = list.slice(2);
  await writePeft(join(folder, "one-component"), layers.slice(2), unet);
  expect((await importAdapter(join(folder, "one-component"), unet)).layers).toEqual(layers.slice(2));
  const large = [{ ...layers[0], up: ramp(2).fill(70000) }];
  expect(await failure(writeKohya(join(folder, "large"), large, list, { dtype: "F16" }))).toMatch(/range of F16/);
  expect(await failure(writeKohya(join(folder, "none"), layers, []))).toMatch(/no such module/);
  expect(await failure(writePeft(join(folder, "odd"), [{ ...layers[0], down: ramp(3) }], list))).toMatch(/do not fit/);
});
