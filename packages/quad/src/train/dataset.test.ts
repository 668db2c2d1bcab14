import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { InputError } from "@quad-lora/base";
import { afterAll, describe, expect, test } from "vitest";
import { readTrainingFolder } from "./dataset.ts";

const root = mkdtempSync(join(tmpdir(), "quad-dataset-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

let count = 0;
/** A folder with these files; the reader does not look into pictures. */
function folderOf(files: Record<string, string> | string[]): string {
  const folder = join(root, String(count++));
  mkdirSync(folder);
  const entries = Array.isArray(files) ? files.map((name) => [name, ""]) : Object.entries(files);
  for (const [name, text] of entries) {
    mkdirSync(dirname(join(folder, name)), { recursive: true });
    writeFileSync(join(folder, name), text);
  }
  return folder;
}

async function messageOf(files: Record<string, string> | string[]): Promise<string> {
  const error = await readTrainingFolder(folderOf(files)).catch((reason) => reason);
  expect(error).toBeInstanceOf(InputError);
  expect(error.message).not.toContain("\n");
  return error.message;
}

describe("a folder of training pictures", () => {
  test("pairs by suffix, captions beside them", async () => {
    const folder = folderOf({
      "b.input.png": "",
      "b.target.jpg": "",
      "b.txt": " a cat\n",
      "a.input.png": "",
      "a.target.png": "",
      ".hidden.png": "",
    });
    const { examples, uncaptioned } = await readTrainingFolder(folder);
    expect(examples).toEqual([
      { name: "a", input: join(folder, "a.input.png"), target: join(folder, "a.target.png"), mask: null, caption: "" },
      {
        name: "b",
        input: join(folder, "b.input.png"),
        target: join(folder, "b.target.jpg"),
        mask: null,
        caption: "a cat",
      },
    ]);
    expect(uncaptioned).toEqual(["a"]);
  });

  test("pairs by folder, captions.json by name or file", async () => {
    const captions = JSON.stringify({ "x/1": "one", "2.png": "two" });
    const files = ["input/x/1.png", "target/x/1.png", "target/2.png", "mask/2.png"];
    const folder = folderOf({ ...Object.fromEntries(files.map((name) => [name, ""])), "captions.json": captions });
    const { examples } = await readTrainingFolder(folder);
    expect(examples.map(({ name, caption, input, mask }) => [name, caption, input !== null, mask !== null])).toEqual([
      ["2", "two", false, true],
      ["x/1", "one", true, false],
    ]);
  });

  test("diffusers' metadata.jsonl", async () => {
    const metadata = '{"file_name":"1.png","text":"one","seed":4}\n{"file_name":"2.webp","text":"two"}\n';
    const { examples, uncaptioned } = await readTrainingFolder(
      folderOf({ "1.png": "", "2.webp": "", "metadata.jsonl": metadata }),
    );
    expect(examples.map(({ caption }) => caption)).toEqual(["one", "two"]);
    expect(uncaptioned).toEqual([]);
  });
});

describe("problems are named", () => {
  test("no folder, no pictures", async () => {
    const missing = join(root, "missing");
    await expect(readTrainingFolder(missing)).rejects.toThrow(`${missing}: there is no such folder`);
    expect(await messageOf(["notes.md"])).toMatch(/there is no picture to train on/);
  });

  test("a picture without its partner", async () => {
    expect(await messageOf(["a.input.png"])).toMatch(/a\.input\.png: .*"a" has no target .*expected a\.target\.png/);
    expect(await messageOf(["a.input.png", "a.target.png", "b.target.png"])).toMatch(/"b" has no input/);
  });

  test("two pictures of one role", async () => {
    expect(await messageOf(["a.png", "a.target.png"])).toMatch(/two pictures are the target of "a"/);
  });

  test("captions: twice, for nothing, or broken", async () => {
    expect(await messageOf({ "a.png": "", "a.txt": "x", "captions.json": '{"a":"y"}' })).toMatch(
      /"a" has two captions/,
    );
    expect(await messageOf({ "a.png": "", "captions.json": '{"b":"y"}' })).toMatch(
      /: b: there is a caption for a picture/,
    );
    expect(await messageOf({ "a.png": "", "captions.json": "{" })).toMatch(/captions\.json: is not valid JSON/);
    expect(await messageOf({ "a.png": "", "metadata.jsonl": '{"file_name":"a.png"}' })).toMatch(
      /metadata\.jsonl:1: text/,
    );
  });
});
