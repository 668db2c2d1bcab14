import { build } from "quad-lora";
import { beforeAll, expect, test } from "vitest";
import { temporaryFolder } from "../helpers/models.ts";
import { loadSmallBuild, scratchFolder } from "../helpers/small-build.ts";
import { fuzzOnce } from "./run-target.ts";
import { type FuzzTarget, fuzzTargets } from "./targets.ts";

/** `npm run fuzz` goes on for as long as it is told; these are the same for everybody. */
const perTarget = process.env.QUAD_FULL_TESTS === "1" ? 2000 : 60;

let targets: FuzzTarget[];
beforeAll(async () => {
  const folder = await scratchFolder();
  await build(await loadSmallBuild(folder));
  targets = await fuzzTargets(folder, temporaryFolder());
});

test("every reader takes the files that it is to be damaged from", async () => {
  for (const target of targets) {
    for (const contents of target.corpus) {
      const { kind, fault } = await fuzzOnce(target, 0, contents);
      // The folder of the model's index has no graphs.
      expect({ name: target.name, kind, fault }).toMatchObject({
        kind: target.name === "model-index" ? "refused" : "read",
      });
    }
  }
});

test("damaged files are read or refused in one line, by every reader", async () => {
  const faults: string[] = [];
  const refused = new Map<string, number>();
  for (const target of targets) {
    for (let seed = 1; seed <= perTarget; seed++) {
      const { kind, fault } = await fuzzOnce(target, seed);
      if (kind === "fault") faults.push(`${target.name}, seed ${seed}: ${fault}`);
      if (kind === "refused") refused.set(target.name, (refused.get(target.name) ?? 0) + 1);
    }
  }
  expect(faults).toEqual([]);
  // Damage that nobody refuses would say that the readers do not look.
  for (const { name } of targets) expect(refused.get(name) ?? 0, name).toBeGreaterThan(0);
});
