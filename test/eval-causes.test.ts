import { join } from "node:path";
import { loadModel } from "@quad-lora/onnx";
import { evaluate, openSafetensors, writeProfile } from "quad-lora";
import { describe, expect, test } from "vitest";
import { graphIdentity } from "../packages/quad/src/model/graph-files.ts";
import { denoiserSlots } from "../packages/quad/src/model/slots.ts";
import { prepareGraph } from "../packages/quad/src/quantizable/prepare-graph.ts";
import { findAll } from "../packages/quad/src/report/findings.ts";
import { configSchema } from "../packages/quad/src/settings/config.ts";
import { policySchema } from "../packages/quad/src/settings/policy.ts";
import { buildSimulation } from "../packages/quad/src/simulate/simulation-graph.ts";
import { exposedPocket, pocketFolder } from "./helpers/exposed-pocket.ts";
import { temporaryFolder } from "./helpers/models.ts";

const folder = temporaryFolder();

/** Without guidance the denoiser runs one row: half the work. */
const config = configSchema.parse({
  model: pocketFolder,
  adapters: Object.fromEntries(
    ["flat", "sketch", "erase"].map((name) => [
      name,
      join(pocketFolder, "adapters", name === "sketch" ? name : `${name}.safetensors`),
    ]),
  ),
  out: join(folder, "unused"),
  work: join(folder, "work"),
  tasks: {
    flat: {
      steps: 2,
      guidance: 1,
      calibration: [{ prompt: "crab animal marine", seed: 1 }],
      evaluation: [{ prompt: "penguin animal bird", seed: 11 }],
    },
  },
});

describe("where the error comes from", { timeout: 300_000 }, () => {
  test("a fault planted in one layer's range is found, and named with its remedy", async () => {
    const exposed = await exposedPocket();
    const bad = "up_blocks.1.resnets.0.conv1";
    const profile = join(folder, "planted.json");
    const { component, slots } = await denoiserSlots(exposed);
    const shape = { batch: 1, height: 16, width: 16, tokens: 16 };
    const prepared = await prepareGraph(loadModel(join(exposed, component, "model.onnx")), slots, shape);
    const { points, layers } = buildSimulation(prepared, slots, {
      placement: "cpu",
      weightBits: 8,
      weightMethod: "min-max",
    });
    expect(layers.map(({ name }) => name)).toContain(bad);
    const factors = await openSafetensors(join(exposed, "adapters/flat.safetensors"));
    const largest = async (name: string) =>
      factors.entries.has(name) ? (await factors.readFloat32(name)).reduce((a, b) => Math.max(a, Math.abs(b)), 0) : 1;
    const scales: Record<string, { a: number; b: number }> = {};
    for (const { name, inputA, inputB } of slots.slots) {
      scales[name] = { a: (await largest(inputA)) / 127, b: (await largest(inputB)) / 127 };
    }
    await factors.close();
    await writeProfile(profile, {
      format: "quad-profile",
      version: 1,
      component,
      graph: await graphIdentity(exposed, component),
      placement: "cpu",
      shape,
      rank: 16,
      policy: policySchema.parse({ align: false, weightMethod: "min-max" }),
      strategy: { kind: "anchor", anchor: "flat", reason: "a test" },
      scores: {},
      shared: {},
      narrowLayers: [bad],
      layerSensitivity: {},
      points: Object.fromEntries(
        points.map(({ name, layer }) => [
          name,
          // Wide for all; for one layer 8 bits that reach only from -0.1 to 0.1.
          layer === bad
            ? { bits: 8 as const, scale: 0.2 / 255, zeroPoint: 128 }
            : { bits: 16 as const, scale: 256 / 65535, zeroPoint: 32768 },
        ]),
      ),
      slots: scales,
    });
    const evaluation = await evaluate(exposed, {
      against: pocketFolder,
      out: join(folder, "planted"),
      config,
      profile,
      pictures: 1,
      layerCalls: 1,
    });
    expect(evaluation.variants.map(({ name }) => name)).toEqual(["reference", "untrained", "candidate"]);
    expect(evaluation.notes.join(" ")).toContain("no observations");
    const noise = evaluation.noise!.tasks.flat;
    const ranked = Object.entries(noise.layers).sort(([, a], [, b]) => b - a);
    expect(ranked[0][0]).toBe(bad);
    expect(ranked[0][1]).toBeGreaterThan(10 * ranked[1][1]);
    // The planted fault is nearly all of the whole.
    expect(ranked[0][1] / noise.total).toBeGreaterThan(0.5);
    expect(ranked[0][1] / noise.total).toBeLessThan(2);
    for (const rest of [noise.weights, noise.adapter]) expect(rest).toBeLessThan(ranked[0][1] / 5);
    expect(noise.between).toBeNull();
    const { untrained, candidate } = evaluation.tasks[0].results;
    // The folder itself is in full precision; the simulated profile spoils the picture.
    expect(candidate.metrics[0].psnr).toBe(100);
    expect(untrained.metrics[0].psnr).toBeLessThan(30);
    // As if the simulated pictures were the bundle's.
    const judged = {
      ...evaluation,
      tasks: evaluation.tasks.map((task) => ({ ...task, results: { candidate: untrained } })),
    };
    const [finding] = findAll(judged as typeof evaluation, null, new Set());
    expect(finding.causes.join(" ")).toContain(`\`${bad}\``);
    expect(finding.advice.join(" ")).toContain(`"^${bad}$"`);
  });
});
