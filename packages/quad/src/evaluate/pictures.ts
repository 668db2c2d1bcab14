import { existsSync } from "node:fs";
import { basename } from "node:path";
import type { Pipeline, RgbImage } from "@quad-lora/runtime";
import { hashBytes } from "../files/hash.ts";
import { writeImage } from "../files/images.ts";
import type { VariantInfo } from "../records/evaluation.ts";
import type { StageOptions } from "../work/progress.ts";
import { keyOf, Results } from "../work/results.ts";
import type { PreparedCase } from "./cases.ts";

/** Changes whenever pictures of the same inputs may come out otherwise. */
const drawingVersion = 2;

/** A way of drawing: one column of the contact sheet. */
export interface Drawer {
  /** Everything that its pictures of a task depend on besides the case, as JSON; null if it cannot draw the task. */
  identity(task: string): unknown | null;
  /** Called before the first picture that has to be drawn. */
  open(): Promise<OpenedDrawer>;
}

export interface OpenedDrawer {
  pipeline: Pipeline;
  /** Selects a task, with its encodings and adapters. */
  use(task: string): Promise<void>;
  dispose(): Promise<void>;
}

/**
 * Draws the cases of all tasks, except pictures that an earlier run left: files are named after a hash of all they depend
 * on, and appear only when complete.
 *
 * @param variant - its name is for file names, its label for progress
 * @returns file names in `folder`, by task
 */
export async function drawPictures(
  folder: string,
  { name, label }: Pick<VariantInfo, "name" | "label">,
  drawer: Drawer,
  tasks: ReadonlyMap<string, readonly PreparedCase[]>,
  { signal, onProgress }: StageOptions = {},
): Promise<Map<string, string[]>> {
  const results = new Results(folder);
  const pictures = picturesOf(name, drawer, tasks);
  const total = [...pictures.values()].reduce((sum, list) => sum + list.length, 0);
  const files = new Map<string, string[]>();
  let done = 0;
  let opened: OpenedDrawer | undefined;
  try {
    for (const [task, list] of pictures) {
      const paths: string[] = [];
      let inUse = false;
      for (const { picture, key, request: prepared } of list) {
        const path = await results.file(picture, key, ".png", async (path) => {
          signal?.throwIfAborted();
          opened ??= await drawer.open();
          if (!inUse) await opened.use(task);
          inUse = true;
          const { sourcePrompt: _source, ...request } = prepared;
          await writeImage(path, await opened.pipeline.generate({ ...request, signal }));
        });
        paths.push(basename(path));
        onProgress?.(`drawing: ${label}`, ++done, total);
      }
      files.set(task, paths);
    }
  } finally {
    await opened?.dispose();
  }
  return files;
}

/** How many of a variant's pictures are there. */
export function countPictures(
  folder: string,
  name: string,
  drawer: Drawer,
  tasks: ReadonlyMap<string, readonly PreparedCase[]>,
): { done: number; total: number } {
  const results = new Results(folder);
  const all = [...picturesOf(name, drawer, tasks).values()].flat();
  const done = all.filter(({ picture, key }) => existsSync(results.path(picture, key, ".png")));
  return { done: done.length, total: all.length };
}

interface KeyedPicture {
  /** Name for its file. */
  picture: string;
  key: string;
  request: PreparedCase;
}

/** A variant's pictures by task, without the tasks that it cannot draw. */
function picturesOf(
  name: string,
  drawer: Drawer,
  tasks: ReadonlyMap<string, readonly PreparedCase[]>,
): Map<string, KeyedPicture[]> {
  const pictures = new Map<string, KeyedPicture[]>();
  for (const [task, cases] of tasks) {
    const identity = drawer.identity(task);
    if (identity === null) continue;
    const keyed = cases.map((request, index) => ({
      picture: `${task}-${index + 1}-${name}`,
      key: keyOf("picture", drawingVersion, [identity, keyOfCase(request)]),
      request,
    }));
    pictures.set(task, keyed);
  }
  return pictures;
}

/** What a case that is drawn depends on by itself, as JSON. */
export function keyOfCase({ image, mask, sourcePrompt: _source, ...rest }: PreparedCase): unknown {
  const picture = (given: Pick<RgbImage, "width" | "height" | "data"> | undefined) =>
    given ? [given.width, given.height, hashBytes(Uint8Array.from(given.data))] : null;
  return [rest, picture(image), picture(mask)];
}
