import { join } from "node:path";
import { openPipeline, type Pipeline, type TrustOptions } from "@quad-lora/runtime";
import * as ort from "onnxruntime-node";
import { folderFiles } from "../files/folder-files.ts";
import { restoreFolder } from "../files/replace-folder.ts";

/** Options of {@link openFolder}. */
export interface OpenFolderOptions extends TrustOptions {
  /** CPU threads per graph; ONNX Runtime's default where left out. */
  threads?: number;
}

/**
 * Opens an exposed folder, a bundle, or a plain diffusers/Optimum ONNX folder on this machine.
 * @throws InputError when files are missing, broken, do not fit each other, or differ from a bundle's manifest
 */
export async function openFolder(folder: string, options: OpenFolderOptions = {}): Promise<Pipeline> {
  const { verify, manifest, trustedKeys } = options;
  // A killed process may have left it, or a bundle's adapters, beside its name.
  await restoreFolder(folder);
  await restoreFolder(join(folder, "adapters"));
  return openPipeline({
    ort: ort as never,
    files: folderFiles(folder),
    verify,
    manifest,
    trustedKeys,
    sessionOptions: {
      logSeverityLevel: 3,
      ...(options.threads ? { intraOpNumThreads: options.threads } : {}),
    },
  });
}

/** A folder's pipeline, opened when it is first needed: for several stages, some or all of which may be done already. */
export class LazyPipeline {
  readonly #folder: string;
  #pipeline: Promise<Pipeline> | undefined;

  constructor(folder: string) {
    this.#folder = folder;
  }

  open(): Promise<Pipeline> {
    return (this.#pipeline ??= openFolder(this.#folder));
  }

  /** Frees the sessions, if there are any. */
  async dispose(): Promise<void> {
    const pipeline = await this.#pipeline?.catch(() => undefined);
    this.#pipeline = undefined;
    await pipeline?.dispose();
  }
}
