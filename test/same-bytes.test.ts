import { join } from "node:path";
import { build } from "quad-lora";
import { expect, test } from "vitest";
import { loadSmallBuild, scratchFolder, snapshot } from "./helpers/small-build.ts";

test("a build from another folder, with nothing kept from before, gives the same bundle to the byte", async () => {
  const bundles: Record<string, string>[] = [];
  for (const name of ["first", "a second one"]) {
    const config = await loadSmallBuild(join(await scratchFolder(), name));
    const { stages } = await build(config);
    expect(Object.values(stages).some(({ reused }) => reused)).toBe(false);
    bundles.push(snapshot(config.out));
  }
  const [first, second] = bundles;
  expect(Object.keys(first)).toEqual(
    expect.arrayContaining(["manifest.json", "unet/model.onnx", "adapters/flat.json"]),
  );
  expect(second).toEqual(first);
}, 300_000);
