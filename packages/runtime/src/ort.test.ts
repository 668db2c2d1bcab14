import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import * as ort from "onnxruntime-node";
import { expect, test } from "vitest";
import type { FolderFiles } from "./files.ts";
import { Component, type OrtModule } from "./ort.ts";

const folder = new URL("../../../models/pocket/", import.meta.url);
const files = {
  describe: (path: string) => path,
  exists: async () => true,
  read: (path: string) => readFile(new URL(path, folder)),
  localPath: (path: string) => fileURLToPath(new URL(path, folder)),
} as unknown as FolderFiles;

/** ONNX Runtime as on another processor: its products of bytes are multiplied by `factor`. Keeps the options it is given. */
function processor(factor: number) {
  const options: ort.InferenceSession.SessionOptions[] = [];
  const module = {
    Tensor: ort.Tensor,
    InferenceSession: {
      create: async (model: Uint8Array & string, given: ort.InferenceSession.SessionOptions) => {
        options.push(given);
        if (typeof model === "string") return ort.InferenceSession.create(model, given);
        // The probe: exact here whatever this processor does.
        const exactly = { ...given, extra: { session: { x64quantprecision: "1" } } };
        const session = await ort.InferenceSession.create(model, exactly);
        return {
          run: async (feeds: Record<string, ort.Tensor>) => {
            const { y } = await session.run(feeds);
            return {
              y: new ort.Tensor(
                "float32",
                (y.data as Float32Array).map((value) => value * factor),
                y.dims,
              ),
            };
          },
          release: () => session.release(),
        };
      },
    },
  } as unknown as OrtModule;
  return { module, options };
}

test("exact products are asked for where the processor's overflow, once for all graphs, and nowhere else", async () => {
  const exact = processor(1);
  const old = processor(0.5);
  for (const { module } of [exact, old]) {
    for (let opened = 0; opened < 2; opened++) {
      const options = { logSeverityLevel: 3 as const, extra: { session: { intra_op: { allow_spinning: "0" } } } };
      await (await Component.open(module, files, "text_encoder", options)).release();
    }
  }
  const settings = ({ options }: typeof exact) => options.slice(1).map(({ extra }) => extra);
  expect(exact.options.length).toBe(3);
  expect(settings(exact)).toEqual(new Array(2).fill({ session: { intra_op: { allow_spinning: "0" } } }));
  expect(settings(old)).toEqual(
    new Array(2).fill({ session: { x64quantprecision: "1", intra_op: { allow_spinning: "0" } } }),
  );
});

test("native sessions run side by side, sessions of one WebAssembly module in turn, and a session is freed after its runs", async () => {
  for (const [package_, expected] of [
    ["node", 2],
    ["web", 1],
  ] as const) {
    let [running, most] = [0, 0];
    const log: string[] = [];
    const module = {
      Tensor: ort.Tensor,
      env: { versions: { [package_]: "1.30.0" } },
      InferenceSession: {
        create: async (...given: Parameters<typeof ort.InferenceSession.create>) => {
          const session = await ort.InferenceSession.create(...given);
          return {
            inputMetadata: session.inputMetadata,
            outputMetadata: session.outputMetadata,
            run: async (feeds: Record<string, ort.Tensor>) => {
              most = Math.max(most, ++running);
              const outputs = await session.run(feeds);
              running--;
              log.push("ran");
              return outputs;
            },
            release: async () => {
              log.push("released");
              await session.release();
            },
          };
        },
      },
    } as unknown as OrtModule;
    const options = { logSeverityLevel: 3 as const };
    const open = () => Component.open(module, files, "text_encoder", options);
    const [first, second] = [await open(), await open()];
    log.length = 0;
    most = 0;
    const ids = new ort.Tensor("int64", new BigInt64Array(16), [1, 16]);
    const runs = [first, second].map((component) => component.run({ input_ids: ids }));
    const released = [first, second].map((component) => component.release());
    await Promise.all([...runs, ...released]);
    expect(most).toBe(expected);
    expect(log.filter((entry) => entry === "ran")).toHaveLength(2);
    expect(log.indexOf("released")).toBeGreaterThan(log.indexOf("ran"));
  }
});
