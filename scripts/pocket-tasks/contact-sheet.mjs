// How a trained task does on the emoji held out of training: rows of input, target and two outputs.
// Usage: node scripts/pocket-tasks/contact-sheet.mjs DATA TASK OUT.png [--adapter PATH] [--guidance 2] [--steps 8] [--seeds 1,2] [--every 1]
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { expose, openFolder, readImage } from "quad-lora";
import sharp from "sharp";

const model = fileURLToPath(new URL("../../models/pocket", import.meta.url));
const cell = 96;
const gap = 4;
const examplesAcross = 4;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    adapter: { type: "string" },
    guidance: { type: "string", default: "2" },
    steps: { type: "string", default: "8" },
    seeds: { type: "string", default: "1,2" },
    every: { type: "string", default: "1" },
  },
});
const [data, task, out] = positionals;
const folder = join(data, task, "held-out");
const captions = JSON.parse(await readFile(join(folder, "captions.json"), "utf8"));
const temporary = await mkdtemp(join(tmpdir(), "quad-sheet-"));
try {
  const exposed = join(temporary, "exposed");
  await expose(model, { out: exposed, adapters: { [task]: values.adapter ?? join(model, "adapters", task) } });
  const pipeline = await openFolder(exposed, { threads: 1 });
  await pipeline.use({ [task]: 1 });
  const guidance = Number(values.guidance);
  const seeds = values.seeds.split(",").map(Number);
  const groups = [];
  for (const [index, [name, prompt]] of Object.entries(captions).entries()) {
    if (index % Number(values.every) !== 0) continue;
    const target = await readImage(join(folder, `${name}.target.png`));
    const input = task === "sticker" ? null : await readImage(join(folder, `${name}.input.png`));
    const outputs = [];
    for (const seed of seeds) {
      const settings = { prompt, seed, guidance, steps: Number(values.steps) };
      outputs.push(await pipeline.generate({ ...settings, ...(input ? { image: input } : {}) }));
    }
    groups.push([...(input ? [input] : []), target, ...outputs]);
  }
  await pipeline.dispose();
  await drawSheet(groups, out);
} finally {
  await rm(temporary, { recursive: true, force: true });
}

async function drawSheet(groups, path) {
  const groupWidth = groups[0].length * (cell + gap) + 3 * gap;
  const pictures = [];
  for (const [index, group] of groups.entries()) {
    for (const [place, { width, height, data: pixels }] of group.entries()) {
      pictures.push({
        input: await sharp(pixels, { raw: { width, height, channels: 3 } })
          .resize(cell, cell, { kernel: "lanczos3" })
          .png()
          .toBuffer(),
        left: (index % examplesAcross) * groupWidth + place * (cell + gap),
        top: Math.floor(index / examplesAcross) * (cell + gap),
      });
    }
  }
  const height = Math.ceil(groups.length / examplesAcross) * (cell + gap);
  const width = examplesAcross * groupWidth;
  await sharp({ create: { width, height, channels: 3, background: "#777777" } })
    .composite(pictures)
    .png()
    .toFile(path);
}
