import { createHash } from "node:crypto";
import { lstatSync, mkdirSync, readdirSync, readFileSync, renameSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { loadModel, runModel, saveModel } from "@quad-lora/onnx";
import { beforeAll, describe, expect, test } from "vitest";
import { buildModel, outputDifference, randomTensor, temporaryFolder } from "../../../../test/helpers/models.ts";
import { writeKohya } from "../adapters/write.ts";
import { openModelFolder } from "../model/model-folder.ts";
import { expose, inspectModel } from "./expose.ts";

// Model folders as caches, exporters and other tools leave them.

const root = temporaryFolder();
let count = 0;
const newFolder = () => join(root, `${count++}`);

const size = 32;
const feeds = { x: randomTensor([2, size], 9) };

/** Two linear layers; `name` gives the nodes' names. */
function graph(name: (layer: string) => string) {
  return buildModel((g) => {
    const weight = (i: number) => g.addInitializer(`onnx::MatMul_${i}`, randomTensor([size, size], i));
    const first = g.apply("MatMul", [g.addInput("x", "float32", ["n", size]), weight(1)], { name: name("a") });
    return { y: { value: g.apply("MatMul", [g.apply("Tanh", [first]), weight(2)], { name: name("b") }) } };
  });
}

const index = {
  _class_name: "StableDiffusionPipeline",
  unet: ["diffusers", "UNet2DConditionModel"],
  vae: ["diffusers", "AutoencoderKL"],
};

/** A folder whose graphs' weights lie in `model.onnx_data`, with the index that Optimum leaves. */
async function modelFolder(name: (layer: string) => string = (layer) => `/blocks.0/${layer}/MatMul`): Promise<string> {
  const folder = newFolder();
  for (const component of ["unet", "vae_encoder", "vae_decoder"])
    await saveModel(graph(name), join(folder, component, "model.onnx"), { externalData: "always" });
  writeFileSync(join(folder, "model_index.json"), `\uFEFF${JSON.stringify(index)}`);
  return folder;
}

let adapter: string;
beforeAll(async () => {
  adapter = join(root, "style.safetensors");
  const modules = (["blocks.0.a", "blocks.0.b"] as const).map((name) => ({
    component: "unet" as const,
    name,
    kind: "linear" as const,
    inFeatures: size,
    outFeatures: size,
  }));
  const factor = (seed: number) => randomTensor([2, size], seed).toFloat32();
  const layers = modules.map(({ component, name }, i) => ({
    component,
    module: name,
    rank: 2,
    down: factor(i),
    up: factor(i + 5),
  }));
  await writeKohya(adapter, layers, modules);
});

const filesOf = (folder: string) =>
  readdirSync(folder, { recursive: true, encoding: "utf8" })
    .filter((path) => !lstatSync(join(folder, path)).isDirectory())
    .sort();
const exposed = async (model: string) => {
  const out = newFolder();
  await expose(model, { out, adapters: { style: adapter } });
  return out;
};
const difference = async (a: string, b: string) =>
  outputDifference(await runModel(loadModel(a), feeds), await runModel(loadModel(b), feeds));

test("both graphs of an autoencoder are copied that the PyTorch pipeline's index has as one", async () => {
  const model = await modelFolder();
  const out = await exposed(model);
  expect(filesOf(out)).toEqual(
    [
      ...["unet", "vae_decoder", "vae_encoder"].flatMap((part) => [`${part}/model.onnx`, `${part}/model.onnx_data`]),
      "adapters/style.safetensors",
      "model_index.json",
      "slots.json",
    ].sort(),
  );
});

describe("links", () => {
  /** The same folder as a snapshot of the Hugging Face cache: every file a link to a blob named by its hash. */
  function inCache(model: string): string {
    const repository = join(newFolder(), "models--someone--model");
    const snapshot = join(repository, "snapshots", "0".repeat(40));
    mkdirSync(join(repository, "blobs"), { recursive: true });
    for (const path of filesOf(model)) {
      const bytes = readFileSync(join(model, path));
      const blob = join(repository, "blobs", createHash("sha256").update(bytes).digest("hex"));
      writeFileSync(blob, bytes);
      const link = join(snapshot, path);
      mkdirSync(dirname(link), { recursive: true });
      symlinkSync(relative(dirname(link), blob), link);
    }
    return snapshot;
  }

  test("of the Hugging Face cache are followed, and the output holds files", async () => {
    const model = await modelFolder();
    const [plain, cached] = [await exposed(model), await exposed(inCache(model))];
    expect(filesOf(cached)).toEqual(filesOf(plain));
    for (const path of filesOf(plain)) {
      expect(lstatSync(join(cached, path)).isSymbolicLink(), path).toBe(false);
      expect(readFileSync(join(cached, path)).equals(readFileSync(join(plain, path))), path).toBe(true);
    }
  });

  test.each<[string, (snapshot: string) => string]>([
    ["to a file beside the blobs", (snapshot) => join(snapshot, "../../secret")],
    [
      "to a blob of another repository",
      (snapshot) => join(snapshot, "../../../models--other--one/blobs", "a".repeat(40)),
    ],
    ["to a file in a folder of the blobs", (snapshot) => join(snapshot, "../../blobs/sub", "a".repeat(40))],
  ])("of a snapshot %s are refused", async (_, target) => {
    const snapshot = inCache(await modelFolder());
    const secret = target(snapshot);
    mkdirSync(dirname(secret), { recursive: true });
    writeFileSync(secret, "a secret");
    symlinkSync(secret, join(snapshot, "vae_decoder", "config.json"));
    await expect(exposed(snapshot)).rejects.toThrow(
      /vae_decoder\/config\.json: a link leads out of the model's folder/,
    );
  });

  test("out of a plain folder are refused, with what they would have published", async () => {
    const model = await modelFolder();
    writeFileSync(join(root, "key"), "private");
    symlinkSync(join(root, "key"), join(model, "vae_encoder", "config.json"));
    await expect(exposed(model)).rejects.toThrow(/vae_encoder\/config\.json: a link leads out/);
    const other = await modelFolder();
    mkdirSync(join(root, "shared"));
    symlinkSync(join(root, "shared"), join(other, "vae_decoder", "more"));
    await expect(exposed(other)).rejects.toThrow(/vae_decoder\/more: a link leads out/);
  });
});

test("weights that lie in other files than model.onnx_data are gathered there, in graphs without slots, too", async () => {
  const model = await modelFolder();
  for (const component of ["unet", "vae_decoder"]) {
    const path = join(model, component, "model.onnx");
    renameSync(`${path}_data`, join(model, component, "some_weights.pb"));
    const bytes = readFileSync(path).toString("latin1");
    // Names of one length, so that the file's other bytes stay as they are.
    writeFileSync(path, Buffer.from(bytes.replaceAll("model.onnx_data", "some_weights.pb"), "latin1"));
  }
  const out = await exposed(model);
  for (const component of ["unet", "vae_decoder"])
    expect(readdirSync(join(out, component)), component).toEqual(["model.onnx", "model.onnx_data"]);
  const graphs = [model, out].map((folder) => join(folder, "vae_decoder", "model.onnx")) as [string, string];
  expect(await difference(...graphs)).toBe(0);
});

test("a graph whose layers have no names says so, in place of the adapter being to blame", async () => {
  const model = await modelFolder((layer) => (layer === "a" ? "MatMul_0" : "/blocks.0/b/MatMul"));
  const { adapters } = await inspectModel(await openModelFolder(model), { style: adapter });
  expect(adapters[0].report.warnings).toEqual([
    expect.stringMatching(/^a layer of .* without a module name.*export the model again/),
  ]);
  const nameless = await modelFolder((layer) => `MatMul_${layer}`);
  await expect(exposed(nameless)).rejects.toThrow(
    /no layer of this adapter fits.* 2 layers without a module name: export it again/,
  );
});
