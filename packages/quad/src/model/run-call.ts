import type { Pipeline, TensorData } from "@quad-lora/runtime";
import { floatTensor, floatValues } from "./denoiser-calls.ts";

/**
 * Runs a denoiser on a recorded call's inputs. Their floats become those that the graph takes: prepared graphs compute in float32
 * where the recorded one was float16.
 */
export async function runCall(
  pipeline: Pipeline,
  component: string,
  inputs: Readonly<Record<string, TensorData>>,
): Promise<Record<string, TensorData>> {
  const types = new Map((await pipeline.inputsOf(component)).map(({ name, type }) => [name, type]));
  const floats = new Set(["float32", "float16"]);
  const converted = Object.entries(inputs).map(([name, tensor]) => {
    const type = types.get(name) ?? tensor.type;
    const isOther = type !== tensor.type && floats.has(type) && floats.has(tensor.type);
    return [name, isOther ? floatTensor(type, tensor.dims, floatValues(tensor)) : tensor];
  });
  return pipeline.runComponent(component, Object.fromEntries(converted));
}
