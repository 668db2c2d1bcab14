import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { InputError } from "@quad-lora/base";
import { type FolderFiles, loadTokenizer, type PromptTokenizer } from "@quad-lora/runtime";
import { InferenceSession } from "onnxruntime-node";
import type { MetricSession } from "../metrics/index.ts";

/**
 * Networks of metrics that Quad does not ship, as ONNX files of the user's. Inputs are float32, `[N, 3, height, width]`,
 * RGB, unless said otherwise; one input and one output each unless said otherwise.
 */
export interface NetworkPaths {
  /** Two inputs `[1, 3, H, W]` in -1..1 at the pictures' own size; the output holds one distance. */
  lpips?: string;
  /** `[N, 3, S, S]` -> `[N, dim]` or `[N, dim, 1, 1]`; S is read from the graph, else 299. Free or fixed (1) batch. */
  inception?: string;
  /** What the Inception network's inputs span. Default [-1, 1]. */
  inceptionRange?: readonly [number, number];
  /** CLIP's vision tower with projection: `[1, 3, S, S]` with CLIP's normalisation -> `[1, dim]`; S from the graph, else 224. */
  clipImage?: string;
  /** CLIP's text tower with projection: `[1, tokens]` int64 or int32, optionally `attention_mask` -> `[1, dim]`. */
  clipText?: string;
  /** Folder with CLIP's `tokenizer.json` (or `vocab.json` and `merges.txt`). Default: the text tower's folder. */
  clipTokenizer?: string;
}

/** Opened networks; what was not given is left out. */
export interface MetricNetworks {
  lpips?: MetricSession;
  inception?: { session: MetricSession; size: number; range: readonly [number, number]; batchSize: number };
  clipImage?: { session: MetricSession; size: number };
  clipText?: { session: MetricSession; tokenizer: PromptTokenizer };
  dispose(): Promise<void>;
}

const inceptionSide = 299;
const clipSide = 224;
/** CLIP's context length, where the graph leaves it free. */
const clipTokens = 77;

/** @throws InputError when a file is missing or no ONNX graph, or CLIP's text tower comes without image tower or tokenizer */
export async function openNetworks(paths: NetworkPaths): Promise<MetricNetworks> {
  if (paths.clipText && !paths.clipImage) {
    throw new InputError({
      what: "a CLIP text network needs the image network too",
      fix: "Give --clip-image as well.",
    });
  }
  const opened: InferenceSession[] = [];
  const open = async (path: string): Promise<InferenceSession> => {
    if (!existsSync(path)) {
      throw new InputError({ what: "there is no such file", file: path, expected: "a network as ONNX" });
    }
    try {
      const session = await InferenceSession.create(path, { logSeverityLevel: 3 });
      opened.push(session);
      return session;
    } catch (error) {
      throw new InputError({ what: `cannot be opened: ${(error as Error).message.split("\n")[0]}`, file: path });
    }
  };
  const networks: MetricNetworks = {
    dispose: async () => {
      for (const session of opened) await session.release();
    },
  };
  try {
    if (paths.lpips) networks.lpips = await open(paths.lpips);
    if (paths.inception) {
      const session = await open(paths.inception);
      networks.inception = {
        session,
        size: fixedDimension(session, 2) ?? inceptionSide,
        range: paths.inceptionRange ?? [-1, 1],
        batchSize: fixedDimension(session, 0) ?? 8,
      };
    }
    if (paths.clipImage) {
      const session = await open(paths.clipImage);
      networks.clipImage = { session, size: fixedDimension(session, 2) ?? clipSide };
    }
    if (paths.clipText) {
      const session = await open(paths.clipText);
      const folder = paths.clipTokenizer ?? dirname(paths.clipText);
      const tokenizer = await loadTokenizer(tokenizerFiles(folder), fixedDimension(session, 1) ?? clipTokens);
      networks.clipText = { session, tokenizer };
    }
    return networks;
  } catch (error) {
    await networks.dispose();
    throw error;
  }
}

function fixedDimension(session: InferenceSession, axis: number): number | undefined {
  const input = session.inputMetadata[0];
  const size = input?.isTensor ? input.shape[axis] : undefined;
  return typeof size === "number" && size > 0 ? size : undefined;
}

/** A folder's own files where the runtime looks for a pipeline's `tokenizer/`. */
function tokenizerFiles(folder: string): FolderFiles {
  const local = (path: string) => join(folder, path.replace(/^tokenizer\//, ""));
  return {
    read: async (path) => new Uint8Array(await readFile(local(path))),
    exists: async (path) => existsSync(local(path)),
    list: async () => [],
    describe: local,
  };
}
