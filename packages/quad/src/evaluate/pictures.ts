import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import type { Pipeline, RgbImage } from "@quad-lora/runtime";
import { writeImage } from "../files/images.ts";
import type { VariantInfo } from "../records/evaluation.ts";
import type { StageOptions } from "../work/progress.ts";
import type { PreparedCase } from "./cases.ts";

/** Changes whenever pictures of the same inputs may come out otherwise. */
const drawingVersion = 1;

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
  const files = new Map<string, string[]>();
  for (const [task, cases] of tasks) {
    const identity = drawer.identity(task);
    if (identity === null) continue;
    files.set(
      task,
      cases.map(
        (request, index) => `${fileSafe(task)}-${index + 1}-${fileSafe(name)}-${hashOf(identity, request)}.png`,
      ),
    );
  }
  const total = [...files.values()].reduce((sum, list) => sum + list.length, 0);
  let done = 0;
  let opened: OpenedDrawer | undefined;
  try {
    for (const [task, list] of files) {
      let inUse = false;
      for (const [index, file] of list.entries()) {
        const path = join(folder, file);
        if (!existsSync(path)) {
          signal?.throwIfAborted();
          opened ??= await drawer.open();
          if (!inUse) await opened.use(task);
          inUse = true;
          const { sourcePrompt: _source, ...request } = tasks.get(task)![index];
          await writeImage(path, await opened.pipeline.generate({ ...request, signal }));
        }
        onProgress?.(`drawing: ${label}`, ++done, total);
      }
    }
  } finally {
    await opened?.dispose();
  }
  return files;
}

/** Removes pictures of earlier evaluations that the current one does not show. */
export async function removeOthers(folder: string, kept: ReadonlySet<string>): Promise<void> {
  for (const name of await readdir(folder).catch(() => [])) {
    if (/-[0-9a-f]{16}\.png$/.test(name) && !kept.has(name)) await rm(join(folder, name));
  }
}

/** 16 hexadecimal digits for what a picture is made from. */
export function hashOf(identity: unknown, { image, mask, sourcePrompt: _source, ...rest }: PreparedCase): string {
  const hash = createHash("sha256").update(
    JSON.stringify([drawingVersion, identity, rest, image && [image.width, image.height]]),
  );
  for (const picture of [image, mask] as (Pick<RgbImage, "data"> | undefined)[]) {
    hash.update(picture ? Uint8Array.from(picture.data) : "none");
  }
  return hash.digest("hex").slice(0, 16);
}

/** Adapter names may hold anything a file name may not. */
export function fileSafe(name: string): string {
  return name.replaceAll(/[^\w-]+/g, "_");
}
