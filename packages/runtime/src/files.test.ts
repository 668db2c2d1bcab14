import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { InputError } from "@quad-lora/base";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { slotsFileSchema } from "./configs.ts";
import { fetchFiles, parseJson } from "./files.ts";
import { tasksFileSchema } from "./tasks.ts";

describe("fetchFiles", () => {
  let server: Server;
  let base: string;
  const requests: string[] = [];
  beforeAll(async () => {
    server = createServer((request, response) => {
      requests.push(`${request.method} ${request.url}`);
      response.statusCode = request.url === "/model/unet/a%20b.bin" ? 200 : 404;
      response.end(response.statusCode === 200 ? Buffer.of(1, 2, 3) : "nothing here");
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    base = `http://127.0.0.1:${(server.address() as AddressInfo).port}/model`;
  });
  afterAll(() => server.close());

  test("reads and asks", async () => {
    const files = fetchFiles(base);
    expect(await files.read("unet/a b.bin")).toEqual(Uint8Array.of(1, 2, 3));
    expect(await files.exists("unet/a b.bin")).toBe(true);
    expect(await files.exists("unet/other")).toBe(false);
    expect(await files.list("unet")).toEqual([]);
  });

  test("a missing file is an InputError with its address", async () => {
    const reading = fetchFiles(`${base}/`).read("unet/other");
    await expect(reading).rejects.toThrow(InputError);
    await expect(reading).rejects.toThrow(`${base}/unet/other: cannot be fetched (got HTTP status 404)`);
  });

  test("with an index it asks the server nothing", async () => {
    requests.length = 0;
    const files = fetchFiles(base, { index: ["adapters/b.safetensors", "adapters/deep/c", "tasks.json"] });
    expect(await files.exists("tasks.json")).toBe(true);
    expect(await files.exists("slots.json")).toBe(false);
    expect(await files.list("adapters")).toEqual(["b.safetensors"]);
    expect(await files.list("")).toEqual(["tasks.json"]);
    expect(requests).toEqual([]);
  });
});

describe("parseJson", () => {
  const slots = {
    format: "quad-slots",
    version: 1,
    rank: { kind: "dynamic" },
    components: {
      unet: {
        strengthInput: "unet.lora_strength",
        slots: [
          {
            name: "conv_in",
            kind: "conv",
            inFeatures: 4,
            outFeatures: 8,
            kernel: [3, 3],
            inputA: "a",
            shapeA: ["rank", 4, 3, 3],
            inputB: "b",
            shapeB: [8, "rank", 1, 1],
          },
        ],
      },
    },
  };

  test("accepts a good file", () => {
    expect(parseJson(JSON.stringify(slots), "slots.json", slotsFileSchema)).toEqual(slots);
  });

  test.each([
    ["another version", { ...slots, version: 2 }, /^slots.json: version: unknown version/],
    ["another format", { ...slots, format: "quad-tasks" }, /^slots.json: format: /],
    ["a fixed rank without number", { ...slots, rank: { kind: "fixed" } }, /^slots.json: rank.rank: /],
    ["a key nobody knows", { ...slots, extra: 1 }, /extra/],
  ])("refuses %s", (_, value, message) => {
    const parse = () => parseJson(JSON.stringify(value), "slots.json", slotsFileSchema);
    expect(parse).toThrow(InputError);
    expect(parse).toThrow(message);
  });

  test("refuses what is not a JSON, and inputs nobody can bring", () => {
    expect(() => parseJson("{", "tasks.json", tasksFileSchema)).toThrow(/^tasks.json: is not valid JSON/);
    const tasks = { format: "quad-tasks", version: 1, tasks: { sketch: { inputs: ["sound"] } } };
    expect(() => parseJson(JSON.stringify(tasks), "tasks.json", tasksFileSchema)).toThrow(/tasks.sketch.inputs.0/);
  });
});
