import { cpSync, existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { adapterRecordSchema } from "@quad-lora/runtime";
import { type BuildConfig, build, distillBundle, distillConfigured, distillSchema, verifyBundle } from "quad-lora";
import { beforeAll, expect, test } from "vitest";
import { main } from "../packages/quad/src/cli/main.ts";
import { loadSmallBuild, scratchFolder, snapshot } from "./helpers/small-build.ts";

let folder: string;
let config: BuildConfig;
let exposed: string;

beforeAll(async () => {
  folder = await scratchFolder();
  const small = await loadSmallBuild(folder);
  const { stages } = await build(small);
  exposed = join(stages.expose.folder, "exposed");
  const distill = distillSchema.parse({
    ...{ pictures: 3, validationPictures: 1, steps: 12, batch: 2, warmup: 1, learningRate: 0.3, averageDecay: 0.8 },
    ...{ validateEvery: 4, checkpointEvery: 2 },
  });
  config = { ...small, distill };
}, 300_000);

let copies = 0;
function copyOfBundle(): string {
  const copy = join(folder, `copy ${copies++}`);
  cpSync(config.out, copy, { recursive: true });
  return copy;
}

const recordOf = (bundle: string, name: string) =>
  adapterRecordSchema.parse(JSON.parse(readFileSync(join(bundle, `adapters/${name}.json`), "utf8")));

test("one adapter's files are replaced, interrupted or not; nothing else changes, and the bundle says better", async () => {
  const bundle = copyOfBundle();
  const before = snapshot(bundle);
  const old = recordOf(bundle, "sketch");

  // Stopped while it trains, the bundle is as it was, and the next run goes on from the checkpoint.
  const controller = new AbortController();
  const stopped = distillBundle({
    ...{ bundle, config, names: ["sketch"], signal: controller.signal },
    onProgress: (stage, done) => stage === "distilling" && done === 5 && controller.abort(new Error("stopped")),
  });
  await expect(stopped).rejects.toThrow("stopped");
  expect(snapshot(bundle)).toEqual(before);

  const { distilled, records } = await distillBundle({ bundle, config, names: ["sketch"] });
  expect(distilled[0].resumedFrom).toBe(5);
  const after = snapshot(bundle);
  expect(Object.keys(after)).toEqual(Object.keys(before));
  expect(Object.keys(after).filter((path) => after[path] !== before[path])).toEqual(
    ["json", "onnx_adapter", "safetensors"].map((extension) => `adapters/sketch.${extension}`),
  );
  await verifyBundle(bundle);
  const record = recordOf(bundle, "sketch");
  expect(records).toEqual([record]);
  const { fit: _, files: __, rank: ___, recordHash: ____, ...rest } = record;
  expect(old).toMatchObject(rest);
  // Trained factors lie on the grid: encoding loses nothing, and the measured denoiser is nearer to full precision.
  expect(record.fit.alignmentError).toBeLessThan(1e-6);
  expect(record.fit.measured!.sqnr).toBeGreaterThan(old.fit.measured!.sqnr!);
  expect(existsSync(join(config.work!, "distill-bundle"))).toBe(false);

  // Not stopped, from the folder named, on another copy: the same bytes.
  const again = copyOfBundle();
  await distillBundle({ bundle: again, config, names: ["sketch"], against: exposed });
  expect(snapshot(again)).toEqual(after);
}, 300_000);

test("an exposed folder's adapters go to a folder of their own, and are what the bundle would get", async () => {
  const out = join(folder, "distilled");
  const profile = join(config.out, "profile.json");
  const [{ sqnrAfter }] = await distillConfigured({ config, exposed, profile, out, names: ["sketch"] });
  expect(readdirSync(out).sort()).toEqual(["sketch.loss.json", "sketch.safetensors"]);
  const bundle = copyOfBundle();
  const { distilled } = await distillBundle({ bundle, config, names: ["sketch"] });
  expect(distilled[0].sqnrAfter).toBe(sqnrAfter);
  await expect(distillConfigured({ config, exposed, profile, out, names: ["erase"] })).rejects.toThrow(
    /no adapter "erase".*flat, sketch/,
  );
}, 300_000);

test("adapters that are not everywhere, and another model's folder, are refused", async () => {
  const bundle = copyOfBundle();
  const before = snapshot(bundle);
  const names = ["sketch"];
  await expect(distillBundle({ bundle, config, names: ["erase"] })).rejects.toThrow(/no adapter "erase".*flat, sketch/);
  const other = join(folder, "other");
  cpSync(exposed, other, { recursive: true });
  const bytes = readFileSync(join(other, "unet/model.onnx"));
  writeFileSync(join(other, "unet/model.onnx"), Buffer.concat([bytes, Buffer.from([0])]));
  await expect(distillBundle({ bundle, config, names, against: other })).rejects.toThrow(
    /profile.json: graph: the profile belongs to another graph.*--against/,
  );
  expect(snapshot(bundle)).toEqual(before);
});

test("the command tells bundles from exposed folders", async () => {
  const bundle = copyOfBundle();
  const file = join(folder, "quad.config.json");
  const run = async (...args: string[]) => {
    const write = process.stderr.write;
    let text = "";
    process.stderr.write = ((part: string) => {
      text += part;
      return true;
    }) as typeof write;
    try {
      await main(["distill", ...args, "--config", file]);
      return { text, code: Number(process.exitCode) };
    } finally {
      process.stderr.write = write;
      process.exitCode = undefined;
    }
  };
  expect(await run(bundle, "--out", "x")).toMatchObject({ code: 2, text: expect.stringContaining("--out x") });
  expect(await run(bundle, "--profile", "p.json")).toMatchObject({ code: 2 });
  expect((await run(exposed, "--out", "x")).text).toMatch(/an exposed folder needs --profile/);
  expect((await run(exposed, "--profile", "p.json")).text).toMatch(/an exposed folder needs --out/);
  const both = await run(exposed, "--profile", "p.json", "--out", "x", "--against", exposed);
  expect(both.text).toMatch(/is the full-precision model itself/);
});
