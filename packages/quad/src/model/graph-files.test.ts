import { join } from "node:path";
import { graphHash } from "@quad-lora/runtime";
import { expect, test } from "vitest";
import { temporaryFolder } from "../../../../test/helpers/models.ts";
import { writeFileAtomically } from "../files/atomic.ts";
import { hashBytes } from "../files/hash.ts";
import { graphBytes, graphFiles, graphIdentity, possibleGraphFiles } from "./graph-files.ts";

const folder = temporaryFolder();
const model = join(folder, "unet", "model.onnx");

test("a graph's identity changes with the graph and with its weights", async () => {
  await writeFileAtomically(model, "graph");
  const alone = await graphIdentity(folder, "unet");
  await writeFileAtomically(`${model}_data`, "weights");
  const whole = await graphIdentity(folder, "unet");
  await writeFileAtomically(`${model}_data`, "weightz");
  const retrained = await graphIdentity(folder, "unet");
  await writeFileAtomically(model, "another graph");
  const other = await graphIdentity(folder, "unet");
  expect(new Set([alone, whole, retrained, other]).size).toBe(4);
  expect(other).toMatch(/^[0-9a-f]{64}$/);
});

test("its size and its identity are those of the files that are there, as a manifest lists them", async () => {
  await writeFileAtomically(model, "graph");
  await writeFileAtomically(`${model}_data`, "weights");
  await writeFileAtomically(join(folder, "unet", "config.json"), "{}");
  expect(graphFiles(folder, "unet")).toEqual([model, `${model}_data`]);
  expect(await graphBytes(folder, "unet")).toBe("graph".length + "weights".length);
  const hashes = ["graph", "weights"].map((text) => hashBytes(new TextEncoder().encode(text)));
  expect(await graphIdentity(folder, "unet")).toBe(await graphHash(hashes));
});

test("weights are looked for under the names of Quad, PyTorch and Optimum", () => {
  const names = possibleGraphFiles(folder, "unet").map((path) => path.slice(folder.length + 1));
  expect(names).toEqual(["unet/model.onnx", "unet/model.onnx_data", "unet/model.onnx.data", "unet/weights.pb"]);
});
