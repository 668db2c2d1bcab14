import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { InputError } from "@quad-lora/base";
import { describe, expect, test } from "vitest";
import { exposedPocket, pocketFolder } from "../../../../test/helpers/exposed-pocket.ts";
import { temporaryFolder } from "../../../../test/helpers/models.ts";
import { graphIdentity } from "../model/graph-files.ts";
import type { Profile } from "../records/profile.ts";
import { ExposedModel } from "./exposed-model.ts";

/** What tells whose a profile is. */
const profileOf = (component: string, graph: string) => ({ component, graph }) as Profile;

describe("an exposed folder", () => {
  test("has the denoiser, its slots and those of all components", async () => {
    const model = await ExposedModel.open(await exposedPocket());
    expect(model.component).toBe("unet");
    expect(model.slots).toBe(model.slotsFile.components.unet);
    const inputs = new Set(model.load().graph.inputs.map(({ name }) => name));
    for (const { inputA, inputB } of model.slots.slots)
      expect([inputs.has(inputA), inputs.has(inputB)]).toEqual([true, true]);
  });

  test("prepares a new graph at every call, of the wanted size and the same names", async () => {
    const model = await ExposedModel.open(await exposedPocket());
    const shape = { batch: 2, height: 8, width: 8, tokens: 16 };
    const [first, second] = [await model.prepare(shape), await model.prepare(shape)];
    expect(first).not.toBe(second);
    const names = (graph: typeof first) => [...graph.graph.nodes].map(({ name, outputs }) => [name, outputs[0]?.name]);
    expect(names(first)).toEqual(names(second));
    const sample = first.graph.inputs.find(({ name }) => name === "sample")!.type;
    expect(sample).toMatchObject({ shape: [2, expect.any(Number), 8, 8] });
  });

  test("takes profiles of its own graph and component, and refuses others with what to do", async () => {
    const folder = await exposedPocket();
    const model = await ExposedModel.open(folder);
    const identity = await graphIdentity(folder, "unet");
    expect(await model.identity()).toBe(identity);
    await model.refuse(profileOf("unet", identity), "profile.json");
    for (const other of [profileOf("unet", "0".repeat(64)), profileOf("transformer", identity)]) {
      expect(await model.isOf(other)).toBe(false);
      const error: InputError = await model.refuse(other, "profile.json", "Do this.").catch((reason) => reason);
      expect(error).toBeInstanceOf(InputError);
      expect(error.message).toMatch(/^profile\.json: .*another graph.*Do this\.$/);
    }
  });

  test("pads all adapters to one rank, or to the one that is asked for", async () => {
    const model = await ExposedModel.open(await exposedPocket());
    const { factors, rank } = await model.factors(["base", "flat", "sketch"]);
    expect([rank, [...factors.keys()]]).toEqual([16, ["flat", "sketch"]]);
    const wider = await model.factors(["sketch"], 20);
    expect([wider.rank, [...wider.factors.get("sketch")!.values()][0].rank]).toEqual([20, 20]);
  });

  test("is refused where there are no slots, or none of the denoiser", async () => {
    await expect(ExposedModel.open(pocketFolder)).rejects.toThrow(/slots\.json: there is no such file.*quad expose/);
    const folder = temporaryFolder();
    writeFileSync(
      join(folder, "slots.json"),
      JSON.stringify({ format: "quad-slots", version: 1, rank: { kind: "dynamic" }, components: {} }),
    );
    await expect(ExposedModel.open(folder)).rejects.toThrow(/the denoiser has no adapter slots/);
  });
});
