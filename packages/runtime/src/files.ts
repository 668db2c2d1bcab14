import { InputError } from "@quad-lora/base";
import type * as z from "zod";

/**
 * Read access to one model folder. Paths are relative to the folder and use `/`.
 * The runtime never opens files itself: Node programs pass an implementation over `node:fs`, browsers {@link fetchFiles}.
 */
export interface FolderFiles {
  /** The whole file. Rejects when it does not exist. */
  read(path: string): Promise<Uint8Array>;
  exists(path: string): Promise<boolean>;
  /** Names (not paths) of the files directly inside a sub-folder; empty when there is none or nothing is known about it. */
  list(path: string): Promise<string[]>;
  /** A path on this machine that ONNX Runtime can open and map by itself, where there is one. */
  localPath?(path: string): string | undefined;
  /** Bytes of a file without reading it; undefined when it does not exist. */
  size?(path: string): Promise<number | undefined>;
  /** SHA-256 of a file in lower-case hexadecimal, without holding it in memory. */
  digest?(path: string): Promise<string>;
  /** How to name the file in messages: a full path or a URL. */
  describe(path: string): string;
}

/**
 * A model folder behind HTTP.
 *
 * @param baseUrl - the folder's URL, with or without a trailing slash
 * @param index - the paths of all files, relative to the folder. Without it existence is asked for with HEAD requests and
 *   nothing can be listed: adapters are then only those that `tasks.json` names.
 * @param fetchFile - replaces the global `fetch`, for caching or authentication
 * @throws InputError from `read` when the server answers anything but success
 */
export function fetchFiles(
  baseUrl: string | URL,
  index?: Iterable<string>,
  fetchFile: (url: string, init?: RequestInit) => Promise<Response> = (url, init) => globalThis.fetch(url, init),
): FolderFiles {
  const base = String(baseUrl).replace(/\/*$/, "/");
  const known = index === undefined ? undefined : new Set(index);
  const address = (path: string) => base + path.split("/").map(encodeURIComponent).join("/");
  return {
    async read(path) {
      const response = await fetchFile(address(path));
      if (!response.ok) {
        throw new InputError({
          what: "cannot be fetched",
          file: address(path),
          got: `HTTP status ${response.status}`,
          fix: "Check the folder's address and that the server delivers this file.",
        });
      }
      return new Uint8Array(await response.arrayBuffer());
    },
    async exists(path) {
      if (known) return known.has(path);
      return (await fetchFile(address(path), { method: "HEAD" })).ok;
    },
    async list(path) {
      const prefix = path === "" ? "" : `${path}/`;
      return [...(known ?? [])]
        .filter((entry) => entry.startsWith(prefix) && !entry.slice(prefix.length).includes("/"))
        .map((entry) => entry.slice(prefix.length));
    },
    describe: address,
  };
}

/**
 * Reads a file that a folder cannot do without.
 *
 * @throws InputError when it does not exist
 */
export async function readRequired(files: FolderFiles, path: string): Promise<Uint8Array> {
  if (await files.exists(path)) return files.read(path);
  throw new InputError({ what: "is missing", file: files.describe(path), fix: "Check that the folder is complete." });
}

/**
 * Reads and checks a JSON file.
 *
 * @throws InputError that names the file and the key when the text is not a JSON or does not fit the schema
 */
export async function readJson<Schema extends z.ZodType>(
  files: FolderFiles,
  path: string,
  schema: Schema,
): Promise<z.infer<Schema>> {
  return parseJson(new TextDecoder().decode(await files.read(path)), files.describe(path), schema);
}

/** As {@link readJson}, for a text already at hand; `file` is only for messages. */
export function parseJson<Schema extends z.ZodType>(text: string, file: string, schema: Schema): z.infer<Schema> {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new InputError({ what: "is not valid JSON", file, got: (error as Error).message });
  }
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  throw new InputError({ what: issue.message, file, where: issue.path.join(".") || undefined });
}
