import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { SeededRandom } from "@quad-lora/runtime";
import type { Browser, Page } from "playwright-core";
import { writeImage, writeProfile, writeReport } from "quad-lora";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Evaluation, writeEvaluation } from "../../packages/quad/src/records/evaluation.ts";
import { policySchema } from "../../packages/quad/src/settings/policy.ts";
import { hasChromium, launchChromium } from "../helpers/chromium.ts";
import { temporaryFolder } from "../helpers/models.ts";

const folder = temporaryFolder();
const evaluationFile = join(folder, "evaluation.json");
const report = join(folder, "report.html");
/** Names come from files of other people: they must stay text. */
const hostile = `<img src=x onerror="globalThis.hacked=1">'"&`;
const layers = ["conv_in", "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "conv_out"];

let include: string[];
let browser: Browser;

beforeAll(async () => {
  await writeEvaluation(evaluationFile, await makeEvaluation());
  await writeProfile(join(folder, "profile.json"), {
    format: "quad-profile",
    version: 1,
    component: "unet",
    graph: "0".repeat(64),
    placement: "cpu",
    shape: { batch: 2, height: 16, width: 16, tokens: 16 },
    rank: 8,
    policy: policySchema.parse({}),
    strategy: { kind: "anchor", anchor: "flat", reason: "a test" },
    scores: { flat: { qss: 3e-5, sqnr: 40 }, [hostile]: { qss: 1e-5, sqnr: 44 } },
    shared: { anchor: { flat: { qss: 3e-5, sqnr: 40 }, [hostile]: { qss: 4e-5, sqnr: 31 } } },
    narrowLayers: layers,
    layerSensitivity: {},
    points: {},
    slots: {},
  });
  const losses = join(folder, "flat.loss.json");
  const curve = {
    format: "quad-training-curve",
    version: 1,
    gradientNorms: [],
    evaluations: [{ step: 50, value: 0.02 }],
  };
  const values = Array.from({ length: 500 }, (_, step) => 0.01 + 0.1 * Math.exp(-step / 90));
  writeFileSync(losses, JSON.stringify({ ...curve, losses: values }));
  const figures = [
    { name: "step, plain", value: 20, unit: "ms", runs: 5 },
    { name: `step, ${hostile}`, value: 15, unit: "ms", runs: 5, baseline: "step, plain" },
  ];
  const benchmarks = join(folder, "latest.json");
  const machine = { cpu: "some processor", cores: 2 };
  const results = { a: { title: "steps", figures } };
  writeFileSync(benchmarks, JSON.stringify({ format: "quad-benchmarks", version: 1, machine, results }));
  const ablation = join(folder, "ablation.json");
  const figure = { pictures: 6, psnr: 31.25, psnrMin: 30, psnrDeviation: 1, ssim: 0.91, sqnr: 28, qss: 1e-4 };
  const row = {
    key: "",
    study: "profiles",
    profile: "own",
    policy: {},
    roundPhases: false,
    narrowLayers: 0,
    seconds: 1,
  };
  const rows = [{ ...row, name: hostile, tasks: { flat: figure } }];
  const head = { format: "quad-ablation", version: 1, placement: "npu", pictures: 6, anchor: "flat" };
  writeFileSync(ablation, JSON.stringify({ ...head, rows }));
  include = [losses, benchmarks, ablation];
  await writeReport(evaluationFile, { out: report, profile: join(folder, "profile.json"), include });
  if (hasChromium) browser = await launchChromium();
});

afterAll(() => browser?.close());

async function makeEvaluation(): Promise<Evaluation> {
  const random = new SeededRandom(5);
  const picture = async (name: string, noise: number) => {
    const data = Uint8Array.from(
      { length: 3 * 64 * 64 },
      (_, i) => 120 + 80 * Math.sin(i / 700) + noise * random.normal(),
    );
    await writeImage(join(folder, "pictures", name), { width: 64, height: 64, data });
    return `pictures/${name}`;
  };
  const variants: Evaluation["variants"] = [
    { name: "reference", label: "full precision", description: "The original.", kind: "reference" },
    { name: "untrained", label: "shared, without training", description: hostile, kind: "simulated" },
    { name: "candidate", label: "bundle", description: "What ships.", kind: "candidate" },
  ];
  const summary = (psnr: number) => {
    const values = { psnr, ssim: 0.96, msssim: 0.97, ssimulacra2: 71, lpips: 0.1 };
    const metrics = Object.fromEntries(
      Object.entries(values).map(([key, value]) => [key, { mean: value, worst: value }]),
    );
    return { pictures: 6, metrics, frechetVae: 0.12, fid: 3.4 };
  };
  const tasks: Evaluation["tasks"] = [];
  for (const [place, task] of ["flat", hostile].entries()) {
    const results: Evaluation["tasks"][number]["results"] = {};
    for (const [index, { name }] of variants.entries()) {
      const psnr = 24 + 6 * place + index;
      const pictures = await Promise.all(
        Array.from({ length: 6 }, (_, i) => picture(`${place}-${i}-${name}.png`, index * 4)),
      );
      const each = { psnr, ssim: 0.96, msssim: 0.97, ssimulacra2: 71, lpips: 0.1 };
      const isReference = name === "reference";
      results[name] = {
        pictures,
        metrics: isReference ? [] : pictures.map(() => each),
        summary: isReference ? null : summary(psnr),
      };
    }
    const input = place === 1 ? { input: await picture(`${place}-input.png`, 0) } : {};
    const cases = Array.from({ length: 6 }, (_, i) => ({ prompt: hostile, seed: i, width: 64, height: 64, ...input }));
    tasks.push({ task, description: hostile, adapters: { [task]: 1 }, steps: 8, guidance: 3, cases, results });
  }
  const noise = (scale: number) => ({
    total: 0.01 * scale,
    weights: 0.001,
    adapter: 0.0005,
    between: null,
    layers: { [layers[0]]: 0.006 * scale, [layers[1]]: 0.002 * scale, [layers[2]]: 0.0001 },
  });
  const groups = (clipped: number) => [1, 2, 3, 4].map((size) => ({ min: -size, max: size, clipped }));
  return {
    format: "quad-evaluation",
    version: 1,
    created: "2026-01-02T03:04:05.000Z",
    reference: { path: "models/some", storage: { base: 30e6, adapters: { flat: 1e6 } } },
    candidate: { path: hostile, kind: "bundle", storage: { base: 13e6, adapters: { flat: 1e6 } } },
    variants,
    tasks,
    msssimScales: 3,
    noise: { calls: 3, tasks: { flat: noise(1), [hostile]: noise(0.3) } },
    ranges: {
      stepGroups: 4,
      points: [
        {
          layer: layers[0],
          point: `${layers[0]}#0`,
          bits: 8,
          low: -2.5,
          high: 2.5,
          tasks: { flat: groups(0.02), [hostile]: groups(0) },
        },
      ],
    },
    ablation: [
      { share: 0.4, narrowLayers: 2, tasks: { flat: summary(30) } },
      { share: 0, narrowLayers: 0, tasks: { flat: summary(35) } },
      { share: null, narrowLayers: 0, tasks: { flat: summary(12) } },
    ],
    notes: [`Task ${hostile} is noted.`],
    machine: { cpu: "some processor", cores: 2, memoryGB: 8, platform: "linux x64" },
    versions: { quad: "0.1.0" },
  };
}

async function open(options: { width?: number; colorScheme?: "light" | "dark" } = {}) {
  const { width = 1280, colorScheme = "light" } = options;
  const page = await browser.newPage({ viewport: { width, height: 900 }, colorScheme });
  page.setDefaultTimeout(120_000);
  const problems: string[] = [];
  page.on("pageerror", (error) => problems.push(String(error)));
  page.on("console", (message) => problems.push(message.text()));
  page.on("request", (request) => {
    if (!/^(file|data):/.test(request.url())) problems.push(`request: ${request.url()}`);
  });
  await page.goto(pathToFileURL(report).href);
  return { page, problems };
}

const background = (page: Page) => page.evaluate(() => getComputedStyle(document.body).backgroundColor);

describe.skipIf(!hasChromium)("report.html in Chromium", { timeout: 300_000 }, () => {
  test("stands on its own: no message, no request, every picture decodes, no name becomes markup", async () => {
    const { page, problems } = await open();
    const pictures = await page.evaluate(async () => {
      const images = [...document.querySelectorAll<HTMLImageElement>("img")];
      await Promise.all(images.map((image) => image.decode()));
      return images.map(({ naturalWidth, alt, src }) => ({ naturalWidth, alt, kind: src.slice(0, 10) }));
    });
    // 2 tasks x 6 cases x (3 variants + 2 differences), 6 inputs, and two in each slider.
    expect(pictures).toHaveLength(2 * 6 * 5 + 6 + 4);
    for (const { naturalWidth, alt, kind } of pictures) {
      expect([naturalWidth, kind]).toEqual([64, "data:image"]);
      expect(alt).not.toBe("");
    }
    expect(await page.evaluate(() => "hacked" in globalThis)).toBe(false);
    expect(await page.textContent("h1")).toContain(hostile);
    expect(await page.locator(".card h3").allTextContents()).toEqual(
      expect.arrayContaining([expect.stringContaining(hostile)]),
    );
    expect(problems).toEqual([]);
    await page.close();
  });

  test("tells the worst task, its layer and what to do", async () => {
    const { page } = await open();
    const summary = (await page.textContent("#summary"))!;
    expect(await page.textContent(".lead")).toMatch(
      /0 of 2 tasks hold\. The worst is flat: PSNR 26\.0 dB.*conv_in.*widen its range/,
    );
    expect(summary).toContain("Training brought 1.0 dB");
    expect(await page.locator(".card").first().textContent()).toContain("conv_in");
    const sections = await page.locator("main > section").evaluateAll((list) => list.map(({ id }) => id));
    expect(sections).toEqual([
      ...["summary", "quality", "pictures", "scores", "layers", "ranges", "curves", "ablation", "storage", "latency"],
      "run",
    ]);
    const tables = page.locator("#ablation table");
    expect(await tables.nth(1).locator("tbody tr").textContent()).toContain(`${hostile}31.3 / 0.910`);
    const rows = await tables.first().locator("tbody tr").allTextContents();
    expect(rows.map((row) => row.slice(0, 6))).toEqual(["0 : 10", "40 : 6", "8 bits"]);
    await page.close();
  });

  test("the slider uncovers the other picture, by mouse, keys and choice", async () => {
    const { page, problems } = await open();
    const box = page.locator(".task").first().locator(".compare");
    const clip = () => box.locator(".over").evaluate((image) => getComputedStyle(image).clipPath);
    const before = await clip();
    await box.locator(".at").focus();
    for (let i = 0; i < 10; i++) await page.keyboard.press("ArrowRight");
    const moved = await clip();
    expect(moved).not.toBe(before);
    expect(await box.locator(".at").inputValue()).toBe("60");
    const stage = (await box.locator(".stage").boundingBox())!;
    await page.mouse.click(stage.x + stage.width * 0.2, stage.y + 20);
    expect(Number(await box.locator(".at").inputValue())).toBeCloseTo(20, 0);

    const source = () => box.locator(".over").getAttribute("src");
    const first = await source();
    // What is evaluated is shown first; then the one that is chosen.
    expect(await box.locator(".variant").inputValue()).toBe("candidate");
    await box.locator(".variant").selectOption("untrained");
    const second = await source();
    expect(second).not.toBe(first);
    const pick = page.locator('.task >> nth=0 >> .pick[data-row="2"][data-variant="candidate"]');
    await pick.click();
    expect(await source()).toBe(await pick.locator("img").getAttribute("src"));
    expect(await box.locator(".row").inputValue()).toBe("2");
    expect(problems).toEqual([]);
    await page.close();
  });

  test("light, dark, and a button for the other", async () => {
    const light = await open({ colorScheme: "light" });
    const dark = await open({ colorScheme: "dark" });
    const [day, night] = [await background(light.page), await background(dark.page)];
    expect(day).not.toBe(night);
    await light.page.click("#theme");
    expect(await background(light.page)).toBe(night);
    await light.page.click("#theme");
    expect(await background(light.page)).toBe(day);
    for (const { page } of [light, dark]) await page.close();
  });

  test.each([390, 800, 1280])("nothing sticks out of a window of %i pixels", async (width) => {
    const { page } = await open({ width });
    expect(await page.evaluate(() => document.documentElement.scrollWidth)).toBeLessThanOrEqual(width);
    await page.close();
  });

  test("is usable without seeing it", async () => {
    const { page } = await open();
    const faults = await page.evaluate(() => {
      const found: string[] = [];
      for (const table of document.querySelectorAll("table")) if (!table.caption?.textContent) found.push("table");
      for (const svg of document.querySelectorAll("figure svg")) if (!svg.getAttribute("aria-label")) found.push("svg");
      for (const cell of document.querySelectorAll("th")) if (!cell.scope) found.push("th");
      for (const input of document.querySelectorAll<HTMLInputElement>("input, select")) {
        if (!input.labels?.[0]?.textContent) found.push(input.className);
      }
      let level = 0;
      for (const heading of document.querySelectorAll("h1, h2, h3")) {
        const own = Number(heading.tagName[1]);
        if (own > level + 1) found.push(`heading ${heading.textContent}`);
        level = own;
      }
      return found;
    });
    expect(faults).toEqual([]);
    await page.close();
  });
});

describe("what goes into it", () => {
  test("the same input gives the same bytes; what is missing is told", async () => {
    const again = join(folder, "again.html");
    await writeReport(evaluationFile, { out: again, profile: join(folder, "profile.json"), include });
    expect(readFileSync(again).equals(readFileSync(report))).toBe(true);
    await writeReport(evaluationFile, { out: again });
    const text = readFileSync(again, "utf8");
    for (const hint of ["Sensitivity scores", "Distillation curves", "Latency and memory"])
      expect(text).toContain(hint);
    expect(text).not.toContain('id="curves"');
  });

  test("files of other kinds are refused when named, passed over in folders", async () => {
    const out = join(folder, "refused.html");
    await expect(writeReport(evaluationFile, { out, include: [evaluationFile] })).rejects.toThrow(
      /holds nothing that a report shows/,
    );
    await expect(writeReport(evaluationFile, { out, include: [join(folder, "none")] })).rejects.toThrow(/no such file/);
    await expect(writeReport(join(folder, "profile.json"), { out })).rejects.toThrow(/format/);
    await writeReport(evaluationFile, { out, include: [folder] });
    expect(readFileSync(out, "utf8")).toContain('id="curves"');
  });
});
