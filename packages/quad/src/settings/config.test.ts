import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { InputError } from "@quad-lora/base";
import { describe, expect, test } from "vitest";
import { pocketFolder } from "../../../../test/helpers/exposed-pocket.ts";
import { temporaryFolder } from "../../../../test/helpers/models.ts";
import { loadConfig } from "./config.ts";

const folder = temporaryFolder();
let count = 0;

const valid = () => ({
  model: "model",
  adapters: { flat: "loras/flat.safetensors" },
  out: "bundle",
  tasks: {
    base: { calibration: [{ prompt: "cat" }] },
    flat: { calibration: [{ image: "in/a.png", mask: "/masks/m.png", seed: 3 }], steps: 4 },
  },
});

async function written(value: unknown, extension = "json"): Promise<string> {
  const path = join(folder, `${count++}.${extension}`);
  await writeFile(path, typeof value === "string" ? value : JSON.stringify(value));
  return path;
}

describe("a configuration", () => {
  test("gets absolute paths and defaults", async () => {
    const config = await loadConfig(await written(valid()));
    expect(config.model).toBe(join(folder, "model"));
    expect(config.adapters).toEqual({ flat: join(folder, "loras/flat.safetensors") });
    expect([config.out, config.work]).toEqual([join(folder, "bundle"), join(folder, ".quad")]);
    expect(config.tasks.flat.calibration).toEqual([{ image: join(folder, "in/a.png"), mask: "/masks/m.png", seed: 3 }]);
    expect(config.target).toBe("cpu");
    expect(config.policy).toMatchObject({ weightBits: 8, adapterBits: 8, strategy: "auto", align: true });
  });

  test("can be written in TypeScript", async () => {
    const source = `const shared: string = "cat";\nexport default { ...${JSON.stringify(valid())}, target: "npu", work: shared };\n`;
    const config = await loadConfig(await written(source, "ts"));
    expect([config.target, config.work]).toEqual(["npu", join(folder, "cat")]);
  });

  test("of the pocket model is valid, and judges on other cases than it calibrates on", async () => {
    const { tasks, adapters } = await loadConfig(join(pocketFolder, "quad.config.json"));
    expect(Object.keys(tasks)).toEqual(["base", ...Object.keys(adapters)]);
    for (const { calibration, evaluation } of Object.values(tasks)) {
      const known = calibration.map((given) => JSON.stringify(given));
      for (const held of evaluation ?? []) expect(known).not.toContain(JSON.stringify(held));
    }
  });
});

describe("what does not fit is named with file and key", () => {
  const changes: [string, (config: ReturnType<typeof valid>) => unknown, RegExp][] = [
    ["a missing key", ({ model: _, ...rest }) => rest, /model: /],
    ["an unknown key", (config) => ({ ...config, modle: "x" }), /modle/],
    ["a wrong target", (config) => ({ ...config, target: "gpu" }), /target: .*"cpu"\|"npu"/],
    [
      "an empty calibration",
      (config) => ({ ...config, tasks: { ...config.tasks, base: { calibration: [] } } }),
      /tasks\.base\.calibration: /,
    ],
    ["a share over 1", (config) => ({ ...config, policy: { narrowShare: 40 } }), /policy\.narrowShare: /],
    ["a range method", (config) => ({ ...config, policy: { narrowRange: { kind: "best" } } }), /policy\.narrowRange/],
    [
      "a pattern",
      (config) => ({ ...config, policy: { keepWide: ["("] } }),
      /policy\.keepWide\.0: is not a regular expression/,
    ],
    [
      "a negative seed",
      (config) => ({ ...config, tasks: { ...config.tasks, base: { calibration: [{ seed: -1 }] } } }),
      /tasks\.base\.calibration\.0\.seed: /,
    ],
    ["a task without adapter", (config) => ({ ...config, adapters: {} }), /tasks\.flat: task "flat" has no adapter/],
    [
      "an adapter without task",
      (config) => ({ ...config, tasks: { base: config.tasks.base } }),
      /tasks\.flat: adapter "flat" has nothing to calibrate on/,
    ],
  ];
  test.each(changes)("%s", async (_, change, message) => {
    const path = await written(change(valid()));
    const error = await loadConfig(path).catch((reason) => reason);
    expect(error).toBeInstanceOf(InputError);
    expect(error.message).toMatch(message);
    expect(error.message).toContain(path);
    expect(error.message).not.toContain("\n");
  });

  test("no file, broken JSON, TypeScript that throws", async () => {
    await expect(loadConfig(join(folder, "none.json"))).rejects.toThrow(/none\.json: there is no such file/);
    await expect(loadConfig(await written("{"))).rejects.toThrow(/is not valid JSON/);
    await expect(loadConfig(await written("throw new Error('oh\\nno');", "ts"))).rejects.toThrow(
      /cannot be evaluated: oh/,
    );
  });
});
