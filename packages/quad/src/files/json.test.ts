import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { InputError } from "@quad-lora/base";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { temporaryFolder } from "../../../../test/helpers/models.ts";
import { readRecord, writeRecord } from "./json.ts";
import { refuseForeignFolder } from "./overwrite.ts";

const folder = temporaryFolder();
const schema = z.strictObject({ name: z.string(), sizes: z.array(z.number()) });

describe("a record", () => {
  test("is read back as it was written, the same bytes every time", async () => {
    const [first, second] = [join(folder, "a.json"), join(folder, "b.json")];
    const value = { name: "grün", sizes: [1, 2.5] };
    await writeRecord(first, value);
    await writeRecord(second, value);
    expect(await readRecord(first, schema)).toEqual(value);
    expect(await readFile(first)).toEqual(await readFile(second));
  });

  test("that is missing says what was expected and what to do", async () => {
    const read = readRecord(join(folder, "none.json"), schema, "a list written by quad list", "Run quad list first.");
    const error: InputError = await read.catch((reason) => reason);
    expect(error).toBeInstanceOf(InputError);
    expect(error.message).toMatch(
      /none\.json: there is no such file.*a list written by quad list.*Run quad list first\.$/,
    );
  });

  test("that is a folder, broken or something else is refused by its place", async () => {
    await mkdir(join(folder, "folder.json"));
    await expect(readRecord(join(folder, "folder.json"), schema)).rejects.toThrow(/cannot be read/);
    await writeFile(join(folder, "broken.json"), "{");
    await expect(readRecord(join(folder, "broken.json"), schema)).rejects.toThrow(/broken\.json: is not valid JSON/);
    await writeFile(join(folder, "other.json"), '{"name": "x", "sizes": [1, "2"]}');
    await expect(readRecord(join(folder, "other.json"), schema)).rejects.toThrow(/other\.json: sizes\.1: /);
  });
});

describe("a folder to write", () => {
  const refuse = (path: string) =>
    refuseForeignFolder(path, { mark: "mark.json", otherwise: "exists and is something else" });

  test("may be new, empty, or one that the same command wrote", async () => {
    await mkdir(join(folder, "empty"));
    await mkdir(join(folder, "own"));
    await writeFile(join(folder, "own", "mark.json"), "{}");
    for (const path of ["new", "empty", "own"]) await refuse(join(folder, path));
  });

  test("is refused where it holds anything else, or is a file", async () => {
    await mkdir(join(folder, "foreign"));
    await writeFile(join(folder, "foreign", "notes.txt"), "");
    for (const path of ["foreign", "foreign/notes.txt"]) {
      await expect(refuse(join(folder, path))).rejects.toThrow(/exists and is something else.*--out/);
    }
  });
});
