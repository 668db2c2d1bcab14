import { existsSync, readdirSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join, relative } from "node:path";
import { InputError } from "@quad-lora/base";
import { z } from "zod";
import { parseJsonFile } from "../files/json.ts";

/** One example: what the network shall draw, for which caption, shown what. Paths of pictures. */
export interface TrainingExample {
  /** Path below the folder without suffix and extension; tells examples apart and orders them. */
  name: string;
  target: string;
  /** What the network is shown; without it the task is text-to-image. */
  input: string | null;
  /** Where to paint (white): the task is inpainting, and `input` (or the target) is shown without those pixels. */
  mask: string | null;
  caption: string;
}

/** What a folder of training pictures holds. */
export interface TrainingFolder {
  /** Sorted by name. */
  examples: TrainingExample[];
  /** Examples without a caption; theirs is empty. */
  uncaptioned: string[];
}

type Role = "target" | "input" | "mask";

const pictures = /\.(png|jpe?g|webp|avif|gif|tiff?)$/i;
const metadataFiles = new Set(["captions.json", "metadata.jsonl"]);

const captionsSchema = z.record(z.string(), z.string());
const metadataLineSchema = z.looseObject({ file_name: z.string(), text: z.string() });

/**
 * Reads what a folder of training pictures holds. `NAME.target.png` (or `target/NAME.png`, or plain `NAME.png`) is what to
 * draw; `NAME.input.png` (or `input/NAME.png`) what is shown; `NAME.mask.png` (or `mask/NAME.png`) where to paint. Captions
 * come from `NAME.txt`, `captions.json` (`{"NAME": "text"}`) or diffusers' `metadata.jsonl`
 * (`{"file_name": "NAME.png", "text": "..."}`).
 * @throws InputError if the folder is missing or holds no example, a picture lacks its partner, or names are ambiguous
 */
export async function readTrainingFolder(folder: string): Promise<TrainingFolder> {
  const files = listFiles(folder);
  const found = new Map<string, Partial<Record<Role, string>>>();
  for (const file of files) {
    if (!pictures.test(file)) continue;
    const { name, role } = roleOf(file);
    const roles = found.get(name) ?? {};
    if (roles[role]) {
      throw new InputError({
        what: `two pictures are the ${role} of "${name}"`,
        file: join(folder, file),
        got: `${roles[role]} and ${file}`,
        fix: "Rename or remove one of them.",
      });
    }
    found.set(name, { ...roles, [role]: file });
  }
  if (found.size === 0) {
    throw new InputError({
      what: "there is no picture to train on",
      file: folder,
      expected: "NAME.input.png with NAME.target.png, or pictures with captions",
    });
  }
  const captions = await readCaptions(folder, files);
  const names = [...found.keys()].sort();
  const hasInputs = names.some((name) => found.get(name)!.input);
  const uncaptioned: string[] = [];
  const examples = names.map((name): TrainingExample => {
    const { target, input, mask } = found.get(name)!;
    if (!target || (hasInputs && !input && !mask)) {
      const got = target ?? input ?? mask!;
      const missing = target ? "input" : "target";
      throw new InputError({
        what: `the picture has no partner: "${name}" has no ${missing}`,
        file: join(folder, got),
        expected: `${name}.${missing}.png or ${missing}/${name}.png`,
        fix: "Add the picture, or remove this one.",
      });
    }
    const caption = captions.get(name);
    if (caption === undefined) uncaptioned.push(name);
    const path = (file: string | undefined) => (file ? join(folder, file) : null);
    return { name, target: join(folder, target), input: path(input), mask: path(mask), caption: caption ?? "" };
  });
  const stray = [...captions.keys()].find((name) => !found.has(name));
  if (stray !== undefined) {
    throw new InputError({
      what: "there is a caption for a picture that is not there",
      file: folder,
      where: stray,
      expected: `a picture such as ${names[0]}`,
      fix: "Correct the name, or remove the caption.",
    });
  }
  return { examples, uncaptioned };
}

function listFiles(folder: string): string[] {
  if (!existsSync(folder)) {
    throw new InputError({ what: "there is no such folder", file: folder, expected: "a folder of training pictures" });
  }
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && !entry.name.startsWith("."))
    .map((entry) => relative(folder, join(entry.parentPath, entry.name)).replaceAll("\\", "/"))
    .sort();
}

/** `sub/cat.input.png` and `input/sub/cat.png` are both the input of `sub/cat`. */
function roleOf(file: string): { name: string; role: Role } {
  const plain = file.replace(/\.[^./]+$/, "");
  const suffix = /\.(target|input|mask)$/.exec(plain);
  if (suffix) return { name: plain.slice(0, suffix.index), role: suffix[1] as Role };
  const prefix = /^(target|input|mask)\//.exec(plain);
  if (prefix) return { name: plain.slice(prefix[0].length), role: prefix[1] as Role };
  return { name: plain, role: "target" };
}

/** Captions by example name. */
async function readCaptions(folder: string, files: readonly string[]): Promise<Map<string, string>> {
  const captions = new Map<string, string>();
  const add = (file: string, name: string, text: string) => {
    if (captions.has(name)) {
      throw new InputError({
        what: `"${name}" has two captions`,
        file: join(folder, file),
        fix: "Remove one of them.",
      });
    }
    captions.set(name, text.trim());
  };
  for (const file of files) {
    const text = () => readFile(join(folder, file), "utf8");
    if (metadataFiles.has(file)) {
      for (const [name, caption] of captionEntries(join(folder, file), await text())) add(file, name, caption);
    } else if (file.endsWith(".txt")) {
      add(file, roleOf(file).name, await text());
    }
  }
  return captions;
}

function captionEntries(file: string, text: string): [name: string, caption: string][] {
  const named = (key: string): string => (pictures.test(key) ? roleOf(key).name : key);
  if (file.endsWith(".json")) {
    return Object.entries(parseJsonFile(file, text, captionsSchema)).map(([key, caption]) => [named(key), caption]);
  }
  return text.split("\n").flatMap((line, index): [string, string][] => {
    if (line.trim() === "") return [];
    const entry = parseJsonFile(`${file}:${index + 1}`, line, metadataLineSchema);
    return [[named(entry.file_name), entry.text]];
  });
}
