import { spawn } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { serializeSafetensors } from "@quad-lora/base";
import { addToBundle, build, openFolder } from "quad-lora";
import { beforeAll, describe, expect, test } from "vitest";
import { pocketFolder } from "../helpers/exposed-pocket.ts";
import { psnr } from "../helpers/pictures.ts";
import {
  adapterTensors,
  fewLayers,
  loadSmallBuild,
  scratchFolder,
  snapshot,
  writeSmallBuild,
} from "../helpers/small-build.ts";

const quad = fileURLToPath(new URL("../../packages/quad/bin/quad.js", import.meta.url));

interface Outcome {
  code: number | null;
  signal: string | null;
  stdout: string;
  stderr: string;
}

/** Runs the command line; `stop.when` is asked again and again, and true sends the signal. */
function run(args: readonly string[], stop?: { signal: "SIGKILL" | "SIGINT"; when: (stdout: string) => boolean }) {
  return new Promise<Outcome>((resolve, reject) => {
    const child = spawn(process.execPath, [quad, ...args]);
    const outcome: Outcome = { code: null, signal: null, stdout: "", stderr: "" };
    child.stdout.on("data", (data) => (outcome.stdout += data));
    child.stderr.on("data", (data) => (outcome.stderr += data));
    child.on("error", reject);
    // Once: a second Ctrl-C would end the process without tidying up.
    const timer = setInterval(() => {
      if (!stop?.when(outcome.stdout)) return;
      child.kill(stop.signal);
      clearInterval(timer);
    }, 20);
    child.on("close", (code, signal) => {
      clearInterval(timer);
      resolve({ ...outcome, code, signal });
    });
  });
}

const stagesIn = (stdout: string, state: "done" | "unchanged") =>
  [...stdout.matchAll(new RegExp(`^${state} +(.+)$`, "gm"))].map(([, name]) => name);

// Several builds, each in a process of its own: minutes.
describe.skipIf(process.env.QUAD_FULL_TESTS !== "1")("quad build", { timeout: 1_800_000 }, () => {
  let folder: string;
  let undisturbed: Record<string, string>;

  beforeAll(async () => {
    folder = await scratchFolder();
    const own = join(folder, "undisturbed");
    mkdirSync(own);
    const outcome = await run(["build", writeSmallBuild(own)]);
    expect(outcome).toMatchObject({ code: 0 });
    undisturbed = snapshot(join(own, "bundle"));
  }, 900_000);

  test("killed in the middle of any stage, it goes on where it stopped, to the same bundle", async () => {
    const own = join(folder, "killed");
    mkdirSync(own);
    const config = writeSmallBuild(own);
    const isUnderWay = (stage: string) => () =>
      existsSync(join(own, "work")) &&
      readdirSync(join(own, "work")).some((name) => name.startsWith(`.${stage}-`) && name.endsWith(".tmp"));
    /** The folder in which the bundle is prepared. */
    const prepared = () => readdirSync(own).find((name) => name.startsWith(".bundle."));
    const before: string[] = [];
    for (const stage of ["record-flat", "observe", "profile", "compile"]) {
      const inFull =
        stage === "compile" ? () => existsSync(join(own, prepared() ?? "none", "unet/model.onnx")) : isUnderWay(stage);
      const outcome = await run(["build", config], { signal: "SIGKILL", when: inFull });
      expect(outcome.signal).toBe("SIGKILL");
      expect(stagesIn(outcome.stdout, "unchanged")).toEqual(before);
      before.push(...stagesIn(outcome.stdout, "done"));
      expect(existsSync(join(own, "bundle"))).toBe(false);
    }
    const last = await run(["build", config]);
    expect(last.code).toBe(0);
    expect(stagesIn(last.stdout, "unchanged")).toEqual(before);
    expect(stagesIn(last.stdout, "done")).toEqual(["compile"]);
    expect(snapshot(join(own, "bundle"))).toEqual(undisturbed);
    const leftOver = [...readdirSync(own), ...readdirSync(join(own, "work"))].filter((name) => name.startsWith("."));
    expect(leftOver).toEqual([]);

    const again = await run(["build", config]);
    expect(stagesIn(again.stdout, "done")).toEqual([]);
    expect(stagesIn(again.stdout, "unchanged")).toEqual([...before, "compile"]);
  });

  test("two at once in one work folder leave each other alone, and give what one gives", async () => {
    const own = join(folder, "twice");
    mkdirSync(own);
    const config = writeSmallBuild(own);
    const both = await Promise.all([run(["build", config]), run(["build", config])]);
    expect(both.map(({ code, stderr }) => [code, stderr.includes("error")])).toEqual([
      [0, false],
      [0, false],
    ]);
    expect(snapshot(join(own, "bundle"))).toEqual(undisturbed);
    const last = await run(["build", config]);
    expect(stagesIn(last.stdout, "done")).toEqual([]);
    const leftOver = [...readdirSync(own), ...readdirSync(join(own, "work"))].filter((name) => name.startsWith("."));
    expect(leftOver).toEqual([]);
  });

  test("Ctrl-C ends it with 130 and leaves no half results", async () => {
    const own = join(folder, "interrupted");
    mkdirSync(own);
    const config = writeSmallBuild(own);
    const isCompiling = () => readdirSync(own).some((name) => name.startsWith(".bundle."));
    const outcome = await run(["build", config], { signal: "SIGINT", when: isCompiling });
    expect(outcome.code).toBe(130);
    expect(outcome.stderr).toMatch(/interrupted by SIGINT\n$/);
    expect(readdirSync(own).sort()).toEqual(["flat.safetensors", "quad.config.json", "sketch", "work"]);
    expect(readdirSync(join(own, "work")).filter((name) => name.startsWith("."))).toEqual([]);
  });

  test("show, run, compile and add from the command line", async () => {
    const own = join(folder, "undisturbed");
    const bundle = join(own, "bundle");
    const shown = await run(["show", bundle, "--verify"]);
    expect(shown).toMatchObject({ code: 0, stderr: "" });
    for (const text of ["unet for cpu", "16 slots", "Profile:", "sketch", "All files are those"])
      expect(shown.stdout).toContain(text);
    expect(JSON.parse((await run(["show", bundle, "--json"])).stdout)).toMatchObject({ verified: false });
    const encodings = await run(["show", bundle, "--encodings", "1.0.0"]);
    expect(JSON.parse(encodings.stdout).version).toBe("1.0.0");
    expect((await run(["show", pocketFolder])).stderr).toMatch(/^error: .*manifest\.json: there is no such file/);

    const image = join(pocketFolder, "samples/sketch-crab.png");
    const out = join(own, "crab.png");
    const drawn = await run(["run", bundle, "--task", "sketch", "--image", image, "--prompt", "crab", "--out", out]);
    expect(drawn.code).toBe(0);
    expect(statSync(out).size).toBeGreaterThan(1000);

    const stageFolder = (name: string) =>
      join(own, "work", readdirSync(join(own, "work")).find((entry) => entry.startsWith(name))!);
    const compiled = join(own, "compiled");
    const profile = join(stageFolder("profile"), "profile.json");
    const compile = ["compile", join(stageFolder("expose"), "exposed"), "--profile", profile, "--out", compiled];
    expect((await run([...compile, "--target", "cpu"])).code).toBe(0);
    expect(snapshot(compiled)["unet/model.onnx"]).toBe(undisturbed["unet/model.onnx"]);
    expect((await run([...compile, "--target", "npu"])).stderr).toMatch(/^error: .*another target/);

    const adapter = join(own, "late.safetensors");
    writeFileSync(adapter, serializeSafetensors(adapterTensors("erase.safetensors", fewLayers)));
    const picture = join(pocketFolder, "samples/picture-crab.png");
    const mask = join(pocketFolder, "samples/mask.png");
    const added = await run([
      ...["add", compiled, adapter, "--task", "late", "--against", pocketFolder, "--steps", "2"],
      ...["--prompt", "remove object", "--image", picture, "--mask", mask],
    ]);
    expect(added).toMatchObject({ code: 0 });
    expect(added.stdout).toMatch(/late +\d+/);
    const record = JSON.parse(readFileSync(join(compiled, "adapters/late.json"), "utf8"));
    expect(record.task).toEqual({
      ...{ adapter: "late", guidance: 3, steps: 2, prompt: "remove object", inputs: ["image", "mask"] },
    });
    expect(record.fit.measured.calls).toBe(8);
    const request = ["--task", "late", "--image", picture, "--mask", mask, "--out", join(own, "late.png")];
    expect((await run(["run", compiled, ...request])).code).toBe(0);
  });

  test("for an npu: static shapes, one rank, and the pictures of full precision", async () => {
    const own = join(folder, "npu");
    mkdirSync(own);
    const config = await loadSmallBuild(own, { target: "npu", policy: { narrowShare: 0 } });
    const { stages, adapters } = await build(config);
    const [quantized, exact] = [await openFolder(config.out), await openFolder(join(stages.expose.folder, "exposed"))];
    expect(quantized.manifest?.target).toEqual({ kind: "npu", rank: 16 });
    for (const { fit } of adapters) expect(fit.measured!.sqnr).toBeGreaterThan(35);
    const request = { prompt: "crab animal marine", seed: 3, steps: 4 };
    for (const task of ["base", "flat"]) {
      await quantized.use(task);
      await exact.use(task);
      const [got, expected] = [await quantized.generate(request), await exact.generate(request)];
      expect(psnr(got.data, expected.data)).toBeGreaterThan(33);
    }
    await expect(quantized.use({ flat: 1, sketch: 1 })).rejects.toThrow(/takes rank 16/);
    await quantized.dispose();
    await exact.dispose();
    const large = join(own, "large.safetensors");
    const wide = adapterTensors("flat.safetensors", fewLayers).map((tensor) => {
      const axis = tensor.name.endsWith("down.weight") ? 0 : 1;
      if (tensor.shape.length < 2) return tensor;
      const shape = tensor.shape.map((size, index) => (index === axis ? 2 * size : size));
      return {
        ...tensor,
        shape,
        data: new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(0.01),
        dtype: "F32" as const,
      };
    });
    writeFileSync(large, serializeSafetensors(wide));
    await expect(addToBundle({ bundle: config.out, adapter: large, name: "large" })).rejects.toThrow(
      /at most 16, got 32/,
    );
  });
});
