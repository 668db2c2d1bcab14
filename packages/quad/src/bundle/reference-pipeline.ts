import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { serializeSafetensors } from "@quad-lora/base";
import { writeTemporary } from "@quad-lora/onnx";
import { type FolderFiles, openPipeline, type Pipeline, type SlotsFile } from "@quad-lora/runtime";
import * as ort from "onnxruntime-node";
import { importAdapter } from "../adapters/import.ts";
import { inspectModel } from "../expose/expose.ts";
import { exposeGraph } from "../expose/expose-graph.ts";
import { bindAdapter } from "../factors/bind-adapter.ts";
import { factorMetadata } from "../factors/factor-file.ts";
import { slotModules } from "../factors/slot-modules.ts";
import { folderFiles } from "../files/folder-files.ts";
import { openModelFolder } from "../model/model-folder.ts";
import { openFolder } from "../model/open-folder.ts";
import { readSlots } from "../model/slots.ts";

/**
 * A full-precision pipeline that has an adapter of its own, to compare a bundle with. All layers of the adapter take part,
 * also those that a bundle or an exposed folder has no slot for, unless the folder is an exposed one.
 * @param folder - plain model folder, or exposed folder with slots for the adapter's layers
 * @param adapter - LoRA file or PEFT folder
 */
export async function openReference(folder: string, name: string, adapter: string): Promise<Pipeline> {
  return existsSync(join(folder, "slots.json")) ? openExposed(folder, name, adapter) : openPlain(folder, name, adapter);
}

async function openExposed(path: string, name: string, adapter: string): Promise<Pipeline> {
  const slots = await readSlots(path);
  const { layers } = await importAdapter(adapter, slotModules(slots), { name });
  const pipeline = await openFolder(path);
  pipeline.addAdapter(name, factorFile(layers, slots.components));
  return pipeline;
}

/** Exposes the graphs in memory: nothing is copied, weights stay in the folder. */
async function openPlain(path: string, name: string, adapter: string): Promise<Pipeline> {
  const folder = await openModelFolder(path);
  const { models, components, adapters } = await inspectModel(folder, { [name]: adapter });
  const [imported] = adapters;
  const replaced = new Map<string, Awaited<ReturnType<typeof writeTemporary>>>();
  try {
    const exposed: SlotsFile["components"] = {};
    for (const { component, layers } of components) {
      const used = layers.filter((layer) =>
        imported.layers.some((own) => own.component === component && own.module === layer.name),
      );
      if (used.length === 0) continue;
      const model = models.get(component)!;
      exposed[component] = exposeGraph(model, component, used, { kind: "dynamic" });
      replaced.set(`${component}/model.onnx`, await writeTemporary(model));
    }
    const slots: SlotsFile = { format: "quad-slots", version: 1, rank: { kind: "dynamic" }, components: exposed };
    const files = folderFiles(path);
    const slotsText = new TextEncoder().encode(JSON.stringify(slots));
    const overlay: FolderFiles = {
      ...files,
      exists: async (file) => file === "slots.json" || files.exists(file),
      read: async (file) =>
        file === "slots.json" ? slotsText : replaced.has(file) ? readFile(replaced.get(file)!.path) : files.read(file),
      localPath: (file) => replaced.get(file)?.path ?? join(path, file),
    };
    const sessionOptions = { logSeverityLevel: 3 as const };
    const pipeline = await openPipeline({ ort: ort as never, files: overlay, sessionOptions });
    pipeline.addAdapter(name, factorFile(imported.layers, exposed));
    return pipeline;
  } finally {
    for (const file of replaced.values()) file.remove();
  }
}

function factorFile(layers: Parameters<typeof bindAdapter>[0], components: SlotsFile["components"]): Uint8Array {
  const { rank, tensors } = bindAdapter(layers, components);
  return serializeSafetensors(tensors, factorMetadata(rank));
}
