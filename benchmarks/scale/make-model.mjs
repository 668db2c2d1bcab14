// A Stable Diffusion 1.5 folder with generated weights, LoRAs for it, and a configuration to build a bundle from.
// Usage: node benchmarks/scale/make-model.mjs OUT [--adapters 10] [--rank 16] [--latents 32]
//
// The UNet is the real graph (860 M parameters, 3.4 GB) with seeded noise as weights. Text encoder and autoencoder are
// stand-ins of the right shapes: one table, one convolution. The pictures mean nothing; sizes, times and memory do.
import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { cp, mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { Model, saveModel, Tensor } from "@quad-lora/onnx";
import { SeededRandom } from "@quad-lora/runtime";
import { inspectModel, openModelFolder, toModule, writeKohya } from "quad-lora";

const root = fileURLToPath(new URL("../..", import.meta.url));
const pocket = join(root, "models/pocket");
const textWidth = 768;
const tokens = 77;
const pixelsPerLatent = 8;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    adapters: { type: "string", default: "10" },
    rank: { type: "string", default: "16" },
    latents: { type: "string", default: "32" },
  },
});
const [out] = positionals;
if (!out) {
  console.error("usage: node benchmarks/scale/make-model.mjs OUT [--adapters 10] [--rank 16] [--latents 32]");
  process.exit(2);
}
const count = Number(values.adapters);
const rank = Number(values.rank);
const latents = Number(values.latents);
const model = join(out, "model");
await mkdir(model, { recursive: true });
await makeFolder();
await makeAdapters();
await makeConfig();

async function makeFolder() {
  const unet = join(model, "unet");
  if (!existsSync(join(unet, "model.onnx_data"))) {
    execFileSync(process.execPath, [join(root, "test/reference/sd15/generate.mjs"), unet], { stdio: "inherit" });
  }
  await writeJson(join(unet, "config.json"), {
    _class_name: "UNet2DConditionModel",
    in_channels: 4,
    sample_size: latents,
  });
  await cp(join(pocket, "tokenizer"), join(model, "tokenizer"), { recursive: true });
  const tokenizer = JSON.parse(await readFile(join(pocket, "tokenizer/tokenizer_config.json"), "utf8"));
  await writeJson(join(model, "tokenizer/tokenizer_config.json"), { ...tokenizer, model_max_length: tokens });
  const vocabulary = JSON.parse(await readFile(join(pocket, "text_encoder/config.json"), "utf8")).vocab_size;
  await saveGraph("text_encoder", (graph) => {
    const ids = graph.addInput("input_ids", "int64", ["batch", tokens]);
    const table = graph.addInitializer("embedding", noise([vocabulary, textWidth], 1, 1));
    return { last_hidden_state: graph.apply("Gather", [table, ids]) };
  });
  await saveGraph("vae_decoder", (graph) => {
    const sample = graph.addInput("latent_sample", "float32", ["batch", 4, "height", "width"]);
    const colours = graph.apply("Conv", [sample, graph.addInitializer("colours", noise([3, 4, 1, 1], 2, 0.3))]);
    const scales = graph.addInitializer("scales", Tensor.float32([4], [1, 1, pixelsPerLatent, pixelsPerLatent]));
    return { sample: graph.apply("Resize", [colours, null, scales], { attributes: { mode: "nearest" } }) };
  });
  await writeJson(join(model, "vae_decoder/config.json"), {
    _class_name: "AutoencoderKL",
    scaling_factor: 0.18215,
    latent_channels: 4,
    block_out_channels: [128, 256, 512, 512],
  });
  await mkdir(join(model, "scheduler"), { recursive: true });
  await writeJson(join(model, "scheduler/scheduler_config.json"), {
    _class_name: "DDIMScheduler",
    num_train_timesteps: 1000,
    beta_start: 0.00085,
    beta_end: 0.012,
    beta_schedule: "scaled_linear",
    clip_sample: false,
    set_alpha_to_one: false,
    steps_offset: 1,
    prediction_type: "epsilon",
  });
  const component = ["diffusers", "OnnxRuntimeModel"];
  await writeJson(join(model, "model_index.json"), {
    _class_name: "OnnxStableDiffusionPipeline",
    scheduler: ["diffusers", "DDIMScheduler"],
    text_encoder: component,
    tokenizer: ["transformers", "PreTrainedTokenizerFast"],
    unet: component,
    vae_decoder: component,
  });
}

/** LoRAs on attention, feed-forward and projections, as kohya's scripts train them, about as strong as real ones. */
async function makeAdapters() {
  await mkdir(join(out, "adapters"), { recursive: true });
  const { components } = await inspectModel(await openModelFolder(model), {});
  const layers = components.find(({ component }) => component === "unet").layers;
  const modules = layers.map((layer) => toModule("unet", layer));
  const adapted = modules.filter(({ name }) => /\.attentions\./.test(name));
  for (let index = 0; index < count; index++) {
    const path = adapterFile(index);
    if (existsSync(path)) continue;
    const random = new SeededRandom(100 + index);
    const values = (length, deviation) => Float32Array.from({ length }, () => random.normal() * deviation);
    const factors = adapted.map(({ name, inFeatures, outFeatures }) => ({
      component: "unet",
      module: name,
      rank,
      down: values(rank * inFeatures, 1 / Math.sqrt(inFeatures)),
      up: values(outFeatures * rank, 0.2 / Math.sqrt(rank)),
    }));
    await writeKohya(path, factors, modules, { dtype: "F16" });
  }
}

/** One picture of two steps a task: enough to run every stage, and its cost is per picture and step. */
async function makeConfig() {
  const names = Array.from({ length: count }, (_, index) => `task${index + 1}`);
  const task = (seed) => ({ calibration: [{ prompt: "red apple food fruit", seed }], steps: 2, guidance: 7.5 });
  await writeJson(join(out, "quad.config.json"), {
    model: "model",
    adapters: Object.fromEntries(names.map((name) => [name, `adapters/${name}.safetensors`])),
    out: "bundle",
    work: "work",
    tasks: { base: task(0), ...Object.fromEntries(names.map((name, index) => [name, task(index + 1)])) },
    target: "cpu",
    policy: { narrowShare: 1 },
    // A few steps: enough for the time of one and the memory that training takes.
    distill: { pictures: 2, validationPictures: 1, steps: 4, batch: 1, warmup: 1, validateEvery: 4, threads: 2 },
  });
}

function adapterFile(index) {
  return join(out, "adapters", `task${index + 1}.safetensors`);
}

async function saveGraph(component, build) {
  const graph = new Model();
  graph.opsets.set("", 17);
  for (const [name, value] of Object.entries(build(graph.graph))) {
    value.name = name;
    graph.graph.outputs.push(value);
  }
  await mkdir(join(model, component), { recursive: true });
  await saveModel(graph, join(model, component, "model.onnx"));
}

function noise(dims, seed, deviation) {
  const random = new SeededRandom(seed);
  const length = dims.reduce((product, size) => product * size, 1);
  return Tensor.float32(
    dims,
    Float32Array.from({ length }, () => random.normal() * deviation),
  );
}

async function writeJson(path, value) {
  await writeFile(path, `${JSON.stringify(value, null, 1)}\n`);
}
