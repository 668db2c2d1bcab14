import { cpSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { serializeSafetensors } from "@quad-lora/base";
import { expect, test } from "vitest";
import { pocketFolder } from "../../../../test/helpers/exposed-pocket.ts";
import { temporaryFolder } from "../../../../test/helpers/models.ts";
import { pocketVariant } from "../../../../test/helpers/pocket-variants.ts";
import { adapterTensors, fewLayers } from "../../../../test/helpers/small-build.ts";
import { expose } from "../expose/expose.ts";
import { readTrajectory } from "../records/trajectory.ts";
import { recordDataset } from "./dataset-teacher.ts";

test.each([
  ["int32 time steps", "int32", [1], "float32"],
  ["float16", "int64", [], "float16"],
] as const)("%s: the teacher gives its graph what it takes", async (variant, timestepType, dims, sampleType) => {
  const folder = temporaryFolder();
  const model = await pocketVariant(variant);
  const lora = join(folder, "flat.safetensors");
  writeFileSync(lora, serializeSafetensors(adapterTensors("flat.safetensors", fewLayers)));
  const exposed = join(folder, "exposed");
  await expose(model, { out: exposed, adapters: { flat: lora } });
  const pictures = join(folder, "pictures");
  mkdirSync(pictures);
  cpSync(join(pocketFolder, "samples/picture-crab.png"), join(pictures, "crab.target.png"));
  writeFileSync(join(pictures, "crab.txt"), "crab");

  const file = join(folder, "dataset.safetensors");
  await recordDataset(model, exposed, "flat", pictures, file, { pictures: 1, seed: 5 });
  const { calls } = await readTrajectory(file);
  expect(calls.length).toBeGreaterThan(1);
  for (const { inputs } of calls) {
    expect(inputs.timestep).toMatchObject({ type: timestepType, dims });
    expect(inputs.sample.type).toBe(sampleType);
  }
});
