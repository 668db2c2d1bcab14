import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseSafetensors, serializeSafetensors } from "@quad-lora/base";
import { checkModel, loadModel, Model, runPasses, saveModel, Tensor } from "@quad-lora/onnx";
import { createScheduler, type FolderFiles, loadTokenizer, openBundle, readOnnxAdapter } from "@quad-lora/runtime";
import {
  type AdaptableModule,
  findLayers,
  folderFiles,
  importAdapter,
  loadComponent,
  loadConfig,
  openModelFolder,
  readAimet,
  readImage,
  readObservations,
  readProfile,
  readSlots,
  readTrajectory,
  toModule,
} from "quad-lora";

/** A reader of files from outside, and files that it takes. */
export interface FuzzTarget {
  name: string;
  /** Contents to damage. */
  corpus: Uint8Array[];
  /** Whether the contents are JSON. */
  isText: boolean;
  /** Reads damaged contents: must end, in time and within memory, with a result or an `InputError`. */
  read(bytes: Uint8Array): Promise<unknown>;
}

const pocket = fileURLToPath(new URL("../../models/pocket", import.meta.url));
const fromPocket = (path: string) => readFileSync(join(pocket, path));

/** A folder in which some files are others. */
function overlay(folder: string, files: Readonly<Record<string, Uint8Array>>): FolderFiles {
  const below = folderFiles(folder);
  const { localPath: _localPath, digest: _digest, size: _size, ...rest } = below;
  return {
    ...rest,
    read: async (path) => files[path] ?? below.read(path),
    exists: async (path) => path in files || below.exists(path),
  };
}

/**
 * All readers of files from outside.
 * @param build - folder of a finished small build (its bundle and its work folder)
 * @param scratch - an empty folder to write damaged files to
 */
export async function fuzzTargets(build: string, scratch: string): Promise<FuzzTarget[]> {
  const bundle = join(build, "bundle");
  const work = (stage: string, file: string) => {
    const folder = readdirSync(join(build, "work")).find((name) => name.startsWith(`${stage}-`));
    return readFileSync(join(build, "work", folder ?? "", file));
  };
  const modules = await pocketModules();
  /** A reader of paths: the damaged contents get a name in the scratch folder. */
  const byPath = (name: string, read: (path: string) => Promise<unknown> | unknown) => async (bytes: Uint8Array) => {
    const path = join(scratch, name);
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, bytes);
    return read(path);
  };
  const inBundle = (path: string) => (bytes: Uint8Array) => readBundle(bundle, path, bytes);
  const text = { isText: true };
  const binary = { isText: false };
  const adapters = ["flat.safetensors", "sketch/adapter_model.safetensors"].map((name) =>
    fromPocket(`adapters/${name}`),
  );
  const tokenizer = ["tokenizer.json", "tokenizer_config.json"] as const;
  return [
    {
      name: "safetensors",
      ...binary,
      corpus: adapters,
      read: async (bytes) => parseSafetensors(bytes, "some.safetensors"),
    },
    {
      name: "lora",
      ...binary,
      corpus: adapters,
      read: byPath("lora.safetensors", (path) => importAdapter(path, modules)),
    },
    {
      name: "lora-methods",
      ...binary,
      corpus: [adapterOfMethods()],
      read: byPath("methods.safetensors", (path) => importAdapter(path, modules)),
    },
    {
      name: "peft-config",
      ...text,
      corpus: [fromPocket("adapters/sketch/adapter_config.json")],
      read: byPath("peft/adapter_config.json", (path) => {
        writeFileSync(join(dirname(path), "adapter_model.safetensors"), adapters[1]);
        return importAdapter(dirname(path), modules);
      }),
    },
    {
      name: "onnx",
      ...binary,
      corpus: [await smallModel(join(scratch, "small.onnx"))],
      read: byPath("model.onnx", async (path) => {
        const model = loadModel(path);
        checkModel(model);
        await runPasses(model);
      }),
    },
    {
      name: "onnx-adapter",
      ...binary,
      corpus: [readFileSync(join(bundle, "adapters/flat.onnx_adapter"))],
      read: async (bytes) => readOnnxAdapter(bytes, "some.onnx_adapter"),
    },
    ...["manifest.json", "adapters/flat.json", "adapters/flat.safetensors", "slots.json", "tasks.json"].map((path) => ({
      name: `bundle/${path}`,
      isText: path.endsWith(".json"),
      corpus: [readFileSync(join(bundle, path))],
      read: inBundle(path),
    })),
    {
      name: "scheduler",
      ...text,
      corpus: [fromPocket("scheduler/scheduler_config.json")],
      read: async (bytes) => createScheduler(parse(bytes), 4, { file: "scheduler_config.json" }),
    },
    ...tokenizer.map((file) => ({
      name: `tokenizer/${file}`,
      ...text,
      corpus: [fromPocket(`tokenizer/${file}`)],
      read: async (bytes: Uint8Array) =>
        (await loadTokenizer(overlay(pocket, { [`tokenizer/${file}`]: bytes }), 16)).encode("crab animal, marine!"),
    })),
    {
      name: "profile",
      ...text,
      corpus: [readFileSync(join(bundle, "profile.json"))],
      read: byPath("profile.json", readProfile),
    },
    {
      name: "slots",
      ...text,
      corpus: [readFileSync(join(bundle, "slots.json"))],
      read: byPath("slots/slots.json", (path) => readSlots(dirname(path))),
    },
    {
      name: "observations",
      ...binary,
      corpus: [work("observe", "observations.safetensors")],
      read: byPath("o", readObservations),
    },
    {
      name: "trajectory",
      ...binary,
      corpus: [work("record-base", "trajectory.safetensors")],
      read: byPath("t", readTrajectory),
    },
    {
      name: "aimet",
      ...text,
      corpus: [readFileSync(join(bundle, "encodings.json"))],
      read: async (bytes) => readAimet(Buffer.from(bytes).toString(), "encodings.json"),
    },
    {
      name: "config",
      ...text,
      corpus: [readFileSync(join(build, "quad.config.json"))],
      read: byPath("quad.config.json", loadConfig),
    },
    {
      name: "model-index",
      ...text,
      corpus: [fromPocket("model_index.json")],
      read: byPath("model/model_index.json", (path) => openModelFolder(dirname(path))),
    },
    {
      name: "picture",
      ...binary,
      corpus: [fromPocket("samples/sketch-crab.png")],
      read: byPath("picture.png", (path) => readImage(path, { width: 64, height: 64 })),
    },
  ];
}

function parse(bytes: Uint8Array): unknown {
  try {
    return JSON.parse(Buffer.from(bytes).toString());
  } catch {
    // What is not JSON never reaches a scheduler.
    return {};
  }
}

async function pocketModules(): Promise<AdaptableModule[]> {
  const folder = await openModelFolder(pocket);
  return folder.adaptable.flatMap((component) =>
    findLayers(loadComponent(folder, component)).layers.map((layer) => toModule(component, layer)),
  );
}

/** Opens a bundle one file of which is damaged, and reads an adapter and what opening a pipeline reads. */
async function readBundle(bundle: string, path: string, bytes: Uint8Array): Promise<void> {
  const opened = await openBundle(overlay(bundle, { [path]: bytes }));
  for (const file of ["slots.json", "tasks.json", "adapters/flat.safetensors"]) await opened?.files.read(file);
}

/** An adapter with a layer of every method that is read besides LoRA. */
function adapterOfMethods(): Uint8Array {
  const attention = "down_blocks_1_attentions_0_transformer_blocks_0_attn1";
  const layers: Record<string, Record<string, number[]>> = {
    [`lora_unet_${attention}_to_q`]: {
      hada_w1_a: [96, 2],
      hada_w1_b: [2, 96],
      hada_w2_a: [96, 2],
      hada_w2_b: [2, 96],
      alpha: [],
    },
    [`lora_unet_${attention}_to_k`]: { lokr_w1: [4, 4], lokr_w2: [24, 24], alpha: [] },
    [`lora_unet_${attention}_to_v`]: { lokr_w1_a: [4, 1], lokr_w1_b: [1, 4], lokr_w2_a: [24, 2], lokr_w2_b: [2, 24] },
    [`base_model.model.${attention}_to_out_0`]: { lora_A: [2, 96], lora_B: [96, 2], lora_E: [2, 1], ranknum: [] },
    lora_unet_down_blocks_0_resnets_0_conv1: {
      ...{ hada_t1: [1, 1, 3, 3], hada_w1_a: [1, 48], hada_w1_b: [1, 48] },
      ...{ hada_t2: [1, 1, 3, 3], hada_w2_a: [1, 48], hada_w2_b: [1, 48] },
    },
    lora_unet_conv_in: { lokr_w1: [3, 3], lokr_t2: [2, 2, 3, 3], lokr_w2_a: [2, 16], lokr_w2_b: [2, 3] },
  };
  const tensors = Object.entries(layers).flatMap(([module, parts]) =>
    Object.entries(parts).map(([part, shape]) => {
      const data = Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => (((i * 7) % 11) + 1) / 8);
      return { name: `${module}.${part}`, dtype: "F32" as const, shape, data };
    }),
  );
  return serializeSafetensors(tensors, { lora_alpha: "4" });
}

/** A graph of few bytes, so that damage meets structure more often than weights. */
async function smallModel(path: string): Promise<Uint8Array> {
  const model = new Model();
  model.opsets.set("", 17);
  const { graph } = model;
  const x = graph.addInput("x", "float32", [1, "rows", 4]);
  const weight = graph.addInitializer(
    "weight",
    Tensor.float32(
      [4, 4],
      Array.from({ length: 16 }, (_, index) => index / 8),
    ),
  );
  const shape = graph.addInitializer("shape", Tensor.of("int64", [2], BigInt64Array.of(-1n, 4n)));
  const [product] = graph.addNode("MatMul", [x, weight], { name: "layer/MatMul" }).outputs;
  const [flat] = graph.addNode("Reshape", [product, shape]).outputs;
  const [softmax] = graph.addNode("Softmax", [flat], { attributes: { axis: 1 } }).outputs;
  const [joined] = graph.addNode("Concat", [softmax, softmax], { attributes: { axis: 0 } }).outputs;
  if (joined) graph.outputs.push(joined);
  await saveModel(model, path);
  return readFileSync(path);
}
