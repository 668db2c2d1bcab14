import { fetchFiles, type GenerateOptions, openPipeline, type RgbImage, type Selection } from "@quad-lora/runtime";
import * as ort from "onnxruntime-web/wasm";

/** One picture to make in the page. Pixels are plain arrays: what crosses into a browser is JSON. */
export interface PageRun {
  selection: Selection;
  options: Pick<GenerateOptions, "prompt" | "seed" | "steps" | "guidance">;
  image?: { width: number; height: number; data: number[] };
  mask?: { width: number; height: number; data: number[] };
}

export interface PageResult {
  tasks: string[];
  pictures: number[][];
  /** Sessions created while the tasks ran, after opening. */
  sessionsWhileRunning: number;
}

/** Opens the folder at a URL and makes the pictures one after another on the same pipeline. */
async function makePictures(folderUrl: string, index: string[], ortUrl: string, runs: PageRun[]): Promise<PageResult> {
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = ortUrl;
  let sessions = 0;
  const counting = {
    Tensor: ort.Tensor,
    InferenceSession: {
      create: (...parameters: Parameters<typeof ort.InferenceSession.create>) => {
        sessions++;
        return ort.InferenceSession.create(...parameters);
      },
    } as typeof ort.InferenceSession,
  };
  const pipeline = await openPipeline({ ort: counting, files: fetchFiles(folderUrl, { index }) });
  const pictures: number[][] = [];
  let opened: number | undefined;
  const bytes = (picture: PageRun["image"]): RgbImage | undefined =>
    picture && { ...picture, data: Uint8Array.from(picture.data) };
  for (const { selection, options, image, mask } of runs) {
    await pipeline.use(selection);
    const result = await pipeline.generate({ ...options, image: bytes(image), mask: bytes(mask) });
    pictures.push([...result.data]);
    // The autoencoder's encoder is opened with the first picture that needs it.
    opened ??= sessions;
  }
  const { tasks } = pipeline;
  await pipeline.dispose();
  return { tasks, pictures, sessionsWhileRunning: sessions - opened! };
}

declare global {
  var runPage: typeof makePictures;
}
globalThis.runPage = makePictures;
