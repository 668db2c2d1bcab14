import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { InputError } from "@quad-lora/base";
import { loadModel } from "@quad-lora/onnx";
import { beforeAll, describe, expect, test } from "vitest";
import { temporaryFolder } from "../../../../test/helpers/models.ts";
import { loadSmallBuild } from "../../../../test/helpers/small-build.ts";
import { recordTask } from "../calibrate/calibrate.ts";
import { observe } from "../calibrate/observe.ts";
import { expose } from "../expose/expose.ts";
import { shapeOf } from "../model/denoiser-calls.ts";
import { graphIdentity } from "../model/graph-files.ts";
import { denoiserSlots } from "../model/slots.ts";
import { buildProfile } from "../profile/build-profile.ts";
import { chooseStrategy } from "../profile/strategy.ts";
import { movedFrom } from "../quantizable/movements.ts";
import { layerOfPoint } from "../quantizable/points.ts";
import { prepareGraph } from "../quantizable/prepare-graph.ts";
import { findQuantizable } from "../quantizable/quantizable.ts";
import { policySchema } from "../settings/policy.ts";
import { writeObservations } from "./observations.ts";
import { type Profile, pointEncoding, readProfile } from "./profile.ts";
import { readTrajectory } from "./trajectory.ts";

const folder = temporaryFolder();
const path = join(folder, "profile.json");
let exposed: string;
let profile: Profile;
const calibration = { trajectories: [] as string[], observations: join(folder, "observations.safetensors") };

beforeAll(async () => {
  // An adapter of a few layers: aligning all of a shipped one takes longer than everything else here.
  const { model: base, adapters } = await loadSmallBuild(folder);
  exposed = join(folder, "exposed");
  await expose(base, { out: exposed, adapters: { sketch: adapters.sketch } });
  const image = {
    width: 64,
    height: 64,
    data: Uint8Array.from({ length: 64 * 64 * 3 }, (_, index) => (index * 7) % 256),
  };
  for (const task of ["base", "sketch"]) {
    const file = join(folder, `${task}.safetensors`);
    const inputs = task === "base" ? {} : { image };
    await recordTask(exposed, task, [{ prompt: "owl animal bird", seed: 3, steps: 1, ...inputs }], file);
    calibration.trajectories.push(file);
  }
  // Only what the layers read: less to compile than all values.
  const { component, slots } = await denoiserSlots(exposed);
  const trajectories = await Promise.all(calibration.trajectories.map(readTrajectory));
  const model = await prepareGraph(loadModel(join(exposed, component, "model.onnx")), slots, shapeOf(trajectories));
  const { layers } = findQuantizable(model, slots);
  const read = layers.flatMap(({ activations }) =>
    activations.map(({ node, index }) => movedFrom(node.input(index)).name),
  );
  const settings = { stepGroups: 1, bins: 64, sampled: 512 };
  const seen = await observe(exposed, component, model, [...new Set(read)], trajectories, settings);
  await writeObservations(calibration.observations, seen);
  profile = await build({ narrowShare: 0.5 }, path);
}, 600_000);

function build(policy: object, out: string): Promise<Profile> {
  return buildProfile({
    exposed,
    ...calibration,
    out,
    policy: policySchema.parse(policy),
    placement: "cpu",
    scoreCalls: 1,
    sensitivityCalls: 1,
  });
}

describe("a profile of the pocket model", () => {
  test("is read back as it was built", async () => {
    expect(await readProfile(path)).toEqual(profile);
  });

  test("belongs to the graph, and encodes every point and slot", async () => {
    expect(profile.graph).toBe(await graphIdentity(exposed, "unet"));
    expect(profile.rank).toBe(8);
    const layers = new Set(Object.keys(profile.points).map((point) => layerOfPoint(point)));
    expect(profile.narrowLayers.length).toBe(Math.round(layers.size / 2));
    for (const [name, point] of Object.entries(profile.points)) {
      const isNarrow = profile.narrowLayers.includes(layerOfPoint(name)!);
      expect(point.bits, name).toBe(isNarrow ? 8 : 16);
      expect(pointEncoding(point)).toMatchObject({ bits: point.bits, signed: false, symmetric: false });
    }
    expect(Object.keys(profile.slots).length).toBeGreaterThan(5);
  });

  test("narrow layers are the least sensitive ones", () => {
    const sensitivity = Object.entries(profile.layerSensitivity);
    const least = sensitivity.filter(([name]) => profile.narrowLayers.includes(name)).map(([, value]) => value);
    const rest = sensitivity.filter(([name]) => !profile.narrowLayers.includes(name)).map(([, value]) => value);
    expect(Math.min(...least)).toBeGreaterThanOrEqual(Math.max(...rest));
  });

  test("an adapter's own profile serves it no worse than the others' does", () => {
    const { anchor } = profile.shared;
    const own = profile.scores.sketch.sqnr;
    expect(own).toBeGreaterThan(30);
    expect(anchor.sketch.sqnr).toBeLessThan(own + 1);
  });
});

describe("files that are not a profile of this version", () => {
  const changes: [string, (json: Record<string, unknown>) => void, RegExp][] = [
    ["another version", (json) => (json.version = 2), /version: unknown version: this program reads version 1/],
    ["another format", (json) => (json.format = "quad-slots"), /format: /],
    ["an unknown key", (json) => (json.colour = 1), /colour/],
    [
      "a bad scale",
      (json) => (Object.values(json.points as Record<string, { scale: number }>)[0].scale = 0),
      /points\..*\.scale: /,
    ],
    ["a missing key", (json) => delete json.rank, /rank: /],
    ["a bad policy", (json) => ((json.policy as { narrowShare: number }).narrowShare = 2), /policy\.narrowShare: /],
  ];
  test.each(changes)("%s is refused by name", async (_, change, message) => {
    const json = JSON.parse(await readFile(path, "utf8"));
    change(json);
    const broken = join(folder, "broken.json");
    await writeFile(broken, JSON.stringify(json));
    const error = await readProfile(broken).catch((reason) => reason);
    expect(error).toBeInstanceOf(InputError);
    expect(error.message).toMatch(message);
    expect(error.message).toContain(broken);
  });

  test("a missing file and broken JSON", async () => {
    await expect(readProfile(join(folder, "none.json"))).rejects.toThrow(/none\.json: there is no such file/);
    await writeFile(join(folder, "half.json"), '{"format": "quad-');
    await expect(readProfile(join(folder, "half.json"))).rejects.toThrow(/half\.json: is not valid JSON/);
  });
});

describe("the choice of whose ranges are shared", () => {
  const scores = {
    base: { qss: 0.5, sqnr: 40 },
    flat: { qss: 1, sqnr: 38 },
    sketch: { qss: 0.9, sqnr: 39 },
  };
  const on = (base: number, flat: number, sketch: number) => ({
    base: { qss: 1, sqnr: base },
    flat: { qss: 1, sqnr: flat },
    sketch: { qss: 1, sqnr: sketch },
  });
  const shared = { anchor: on(30, 38, 20), unified: on(36, 31, 35), mixed: on(35, 33, 34) };
  const choose = (policy: object, among = shared) =>
    chooseStrategy(policySchema.parse(policy), { scores, shared: among, anchor: "flat" });

  test("by default it is the one whose worst task is served best", () => {
    expect(choose({})).toMatchObject({ kind: "mixed", anchor: null });
    expect(choose({}).reason).toMatch(
      /"flat", has 33\.0 dB; anchor would leave "sketch" at 20\.0 dB, unified .*31\.0 dB/,
    );
    expect(choose({}, { ...shared, anchor: on(40, 40, 40) })).toMatchObject({ kind: "anchor", anchor: "flat" });
  });

  test("the paper's rule is the spread against the threshold", () => {
    const paper = (unifiedThreshold: number) => choose({ strategy: "paper", unifiedThreshold });
    expect(paper(0.5)).toMatchObject({ kind: "anchor", anchor: "flat" });
    expect(paper(0.5).reason).toMatch(/"flat" .* 50 %/);
    expect(paper(0.51)).toMatchObject({ kind: "unified", anchor: null });
    expect(paper(0).kind).toBe("anchor");
  });

  test("each can be forced", () => {
    expect(choose({ strategy: "anchor" })).toMatchObject({ kind: "anchor", anchor: "flat" });
    for (const strategy of ["unified", "mixed"])
      expect(choose({ strategy })).toMatchObject({ kind: strategy, anchor: null });
  });

  test("the anchor is the adapter with the highest score, never the base", () => {
    const adapters = Object.entries(profile.scores).filter(([name]) => name !== "base");
    const most = adapters.reduce((a, b) => (b[1].qss > a[1].qss ? b : a))[0];
    if (profile.strategy.kind === "anchor") expect(profile.strategy.anchor).toBe(most);
    expect(Object.keys(profile.shared).sort()).toEqual(["anchor", "mixed", "unified"]);
  });
});
