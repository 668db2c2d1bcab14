import { readFileSync, rmSync } from "node:fs";
import { cp, mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseSafetensors, toFloat32 } from "@quad-lora/base";
import {
  type DataType,
  type Dimension,
  dataTypes,
  loadModel,
  type Model,
  saveModel,
  Tensor,
  tensorType,
  type Value,
} from "@quad-lora/onnx";
import { pocketFolder } from "./exposed-pocket.ts";

/**
 * How else exporters and compilers shape the same graphs: weights in a second file; every size fixed, batch 1 and a
 * floating-point time step, as for a device; float16 at the borders and int32 tokens; an int32 time step of rank 1. And models that condition otherwise:
 * 4 channels (text-to-image; batch 2 only) and 8 (InstructPix2Pix; likewise), with what they lack built in.
 */
export type Variant = "external data" | "fixed sizes" | "float16" | "int32 time steps" | "4 channels" | "8 channels";

/** A copy of the pocket model in another shape that computes the same. */
export async function pocketVariant(variant: Variant): Promise<string> {
  const parent = await mkdtemp(join(tmpdir(), "quad-variant-"));
  process.once("exit", () => rmSync(parent, { recursive: true, force: true }));
  const folder = join(parent, "pocket");
  await cp(pocketFolder, folder, { recursive: true });
  const path = join(folder, "unet/model.onnx");
  const unet = loadModel(path);
  if (variant === "fixed sizes") {
    setInput(unet, "sample", "float32", [1, 9, 16, 16]);
    setInput(unet, "encoder_hidden_states", "float32", [1, 16, 96]);
    setInput(unet, "timestep", "float32", [1]);
  }
  if (variant === "int32 time steps") setInput(unet, "timestep", "int32", [1]);
  if (variant === "float16") {
    setInput(unet, "sample", "float16", ["batch", 9, "height", "width"]);
    setInput(unet, "encoder_hidden_states", "float16", ["batch", 16, 96]);
    const output = unet.graph.outputs[0];
    const half = unet.graph.apply("Cast", [output], { attributes: { to: dataTypes.float16.code } });
    half.type = tensorType("float16", ["batch", 4, "height", "width"]);
    unet.graph.replace(output, half, { except: half.producer! });
    const encoderPath = join(folder, "text_encoder/model.onnx");
    const encoder = loadModel(encoderPath);
    setInput(encoder, "input_ids", "int32", ["batch", 16]);
    await saveModel(encoder, encoderPath);
  }
  if (variant === "4 channels" || variant === "8 channels") {
    const channels = variant === "4 channels" ? 4 : 8;
    const sample = unet.graph.inputs.find((value) => value.name === "sample")!;
    const readers = sample.uses;
    sample.type = tensorType("float32", [2, channels, 16, 16]);
    const mask = unet.graph.addInitializer("mask", Tensor.float32([2, 1, 16, 16], new Float32Array(512).fill(1)));
    const parts = channels === 4 ? [sample, mask, greyLatents(unet)] : withImage(unet, sample, mask);
    const joined = unet.graph.apply("Concat", parts, { attributes: { axis: 1 } });
    for (const { node, index } of readers) node.setInput(index, joined);
  }
  await saveModel(unet, path, { externalData: variant === "external data" ? "always" : "never" });
  return folder;
}

/** Changes the type and shape of an input; the graph behind it sees what it saw before. */
function setInput(model: Model, name: string, dataType: DataType, shape: readonly Dimension[]): void {
  const value = model.graph.inputs.find((input) => input.name === name)!;
  const before = value.dataType!;
  if (before !== dataType) {
    const cast = model.graph.apply("Cast", [value], { attributes: { to: dataTypes[before].code } });
    model.graph.replace(value, cast, { except: cast.producer! });
    if (name === "timestep") {
      const scalar = model.graph.apply("Squeeze", [cast]);
      model.graph.replace(cast, scalar, { except: scalar.producer! });
    }
  }
  value.type = tensorType(dataType, shape);
}

/** The latents of a mid-grey picture, from the reference, for both rows of the batch. */
function greyLatents(model: Model): Value {
  const bytes = readFileSync(new URL("../reference/pocket/end-to-end.safetensors", import.meta.url));
  const row = toFloat32(parseSafetensors(bytes, "end-to-end.safetensors").tensors.get("base.cond")!).slice(0, 1024);
  return model.graph.addInitializer("grey", Tensor.float32([2, 4, 16, 16], Float32Array.of(...row, ...row)));
}

/** Latents, mask and image latents, which come unscaled and in second place. */
function withImage(model: Model, sample: Value, mask: Value): Value[] {
  const split = model.graph.addNode("Split", [sample], { attributes: { axis: 1 }, outputCount: 2 });
  const config = JSON.parse(readFileSync(join(pocketFolder, "vae_encoder/config.json"), "utf8"));
  const scale = model.graph.addInitializer("scale", Tensor.float32([1], Float32Array.of(config.scaling_factor)));
  return [split.output(0), mask, model.graph.apply("Mul", [split.output(1), scale])];
}
