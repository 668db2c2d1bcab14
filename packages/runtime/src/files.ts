import { checkRelativePath, checkValue, InputError, type Schema } from "@quad-lora/base";
import type { output } from "zod/v4/core";

/**
 * Read access to one model folder. Paths are relative to the folder and use `/`; names that come from a file are checked
 * (`checkRelativePath`) by every implementation.
 * The runtime never opens files itself: Node programs pass an implementation over `node:fs`, browsers {@link fetchFiles}.
 */
export interface FolderFiles {
  /** The whole file. Rejects when it does not exist. */
  read(path: string): Promise<Uint8Array>;
  /**
   * False only where the file is known not to be there. Rejects where that cannot be found out: what cannot be asked for
   * must not pass for absent, or a folder would lose its manifest to a busy server.
   */
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

/** Options of {@link fetchFiles}. */
export interface FetchOptions {
  /**
   * The paths of all files, relative to the folder. Without it existence is asked for with HEAD requests and nothing can be
   * listed: adapters are then only those that `tasks.json` names.
   */
  index?: Iterable<string>;
  /** Replaces the global `fetch`, for caching or authentication. */
  fetch?: (url: string, init?: RequestInit) => Promise<Response>;
  /** Longest time without a byte before a request is given up, milliseconds; 30,000 by default. */
  stallTimeout?: number;
  /** Largest file that is accepted, bytes; 8e9 by default. */
  maxBytes?: number;
}

/**
 * A model folder behind HTTP. Only the statuses 404 and 410 say that a file is not there, and a page (`text/html`) that a
 * host sends in the place of files it does not have.
 *
 * @param baseUrl - the folder's URL, with or without a trailing slash
 * @throws InputError naming the URL, from `read` when the server answers anything but success, from `exists` when it
 *   answers neither success nor absence, and from both when it cannot be reached, stalls, or sends more than `maxBytes`
 */
export function fetchFiles(baseUrl: string | URL, options: FetchOptions = {}): FolderFiles {
  const { stallTimeout = 30_000, maxBytes = 8e9 } = options;
  const fetchFile = options.fetch ?? ((url, init) => globalThis.fetch(url, init));
  const base = String(baseUrl).replace(/\/*$/, "/");
  const known = options.index === undefined ? undefined : new Set(options.index);
  const address = (path: string) =>
    base + checkRelativePath(path, { file: base }).split("/").map(encodeURIComponent).join("/");
  /** Runs a request and what is done with its answer; `alive` is to be called when bytes come. */
  const request = async <Result>(
    url: string,
    method: "GET" | "HEAD",
    use: (response: Response, alive: () => void) => Promise<Result>,
  ): Promise<Result> => {
    const stalled = new AbortController();
    let timer = setTimeout(() => stalled.abort(), stallTimeout);
    const alive = () => {
      clearTimeout(timer);
      timer = setTimeout(() => stalled.abort(), stallTimeout);
    };
    try {
      return await use(await fetchFile(url, { method, signal: stalled.signal }), alive);
    } catch (error) {
      if (error instanceof InputError) throw error;
      const got = stalled.signal.aborted
        ? `nothing for ${stallTimeout / 1000} s`
        : String((error as Error)?.message ?? error);
      throw new InputError({ what: "cannot be fetched", file: url, got, fix: "Check the connection and try again." });
    } finally {
      clearTimeout(timer);
    }
  };
  return {
    async read(path) {
      const url = address(path);
      return request(url, "GET", async (response, alive) => {
        if (!response.ok) throw refusedAnswer(url, response);
        if (isPageInstead(path, response)) {
          throw new InputError({ what: "is missing", file: url, got: "a page (text/html)", fix: fileFix });
        }
        return readBody(response, url, maxBytes, alive);
      });
    },
    async exists(path) {
      if (known) return known.has(path);
      const url = address(path);
      return request(url, "HEAD", async (response) => {
        if (response.status === 404 || response.status === 410) return false;
        if (!response.ok) throw refusedAnswer(url, response);
        return !isPageInstead(path, response);
      });
    },
    async list(path) {
      const prefix = path === "" ? "" : `${path}/`;
      return [...(known ?? [])]
        .filter((entry) => entry.startsWith(prefix) && !entry.slice(prefix.length).includes("/"))
        .map((entry) => entry.slice(prefix.length));
    },
    describe: (path) => base + path.split("/").map(encodeURIComponent).join("/"),
  };
}

const fileFix = "Check the folder's address and that the server delivers this file.";

function refusedAnswer(url: string, { status }: Response): InputError {
  return new InputError({ what: "cannot be fetched", file: url, got: `HTTP status ${status}`, fix: fileFix });
}

/** Hosts of single-page apps answer every unknown path with their page and status 200. */
function isPageInstead(path: string, { headers }: Response): boolean {
  return /^text\/html\b/i.test(headers.get("content-type") ?? "") && !/\.html?$/i.test(path);
}

async function readBody(response: Response, url: string, maxBytes: number, alive: () => void): Promise<Uint8Array> {
  const refuseMore = (bytes: number) => {
    if (bytes <= maxBytes) return;
    throw new InputError({
      what: "is larger than is accepted",
      file: url,
      expected: `at most ${maxBytes} bytes`,
      fix: fileFix,
    });
  };
  const announced = Number(response.headers.get("content-length") ?? 0);
  refuseMore(announced);
  if (!response.body) return new Uint8Array(await response.arrayBuffer());
  const parts: Uint8Array[] = [];
  let bytes = 0;
  const reader = response.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    alive();
    bytes += value.byteLength;
    if (bytes > maxBytes) await reader.cancel();
    refuseMore(bytes);
    parts.push(value);
  }
  const whole = new Uint8Array(bytes);
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.byteLength;
  }
  return whole;
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
export async function readJson<S extends Schema>(files: FolderFiles, path: string, schema: S): Promise<output<S>> {
  return parseJson(new TextDecoder().decode(await files.read(path)), files.describe(path), schema);
}

/** As {@link readJson}, for a text already at hand; `file` is only for messages. A byte order mark is skipped. */
export function parseJson<S extends Schema>(text: string, file: string, schema: S): output<S> {
  let value: unknown;
  try {
    value = JSON.parse(text.startsWith("\ufeff") ? text.slice(1) : text);
  } catch (error) {
    throw new InputError({ what: "is not valid JSON", file, got: (error as Error).message });
  }
  const { data, issue } = checkValue(schema, value);
  if (!issue) return data;
  throw new InputError({ what: issue.message, file, where: issue.path.join(".") || undefined });
}
